"""Does `bench gate` tell a regression from none? Documents of runs against mocks of known speeds."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from twofour.bench.load.run import document
from twofour.bench.proof.mock import Script
from twofour.bench.proof.truth import against, closed

RUNS = 4
# Of what is new against the base: ms a token, and the status that the gate should end with.
ARMS = {"same": (0.010, 0), "slower by a tenth": (0.011, 1)}


def statuses(cpu: int | None) -> dict[str, tuple[int, int]]:
    """What the gate said of each arm, and what it should say; one run alone is inconclusive, none is invalid."""
    with TemporaryDirectory() as folder:
        base = _measured(Path(folder) / "base", 0.010, cpu)
        found = {
            name: (_gate(base, _measured(Path(folder) / name, token_s, cpu)), right)
            for name, (token_s, right) in ARMS.items()
        }
        one = next(base.iterdir())
        found["one run"] = _gate(one, one), 2
        broken = Path(folder) / "broken.json"
        broken.write_text(json.dumps(json.loads(one.read_text()) | {"valid": False}))
        found["invalid run"] = _gate(base, broken), 3
    return found


def _measured(folder: Path, token_s: float, cpu: int | None) -> Path:
    folder.mkdir()
    for number in range(RUNS):
        run, _ = against(Script(first_token_s=0.02, token_s=token_s), closed(24, 8, 16, 4), cpu)
        (folder / f"{number}.json").write_text(json.dumps(document(run, with_records=False)))
    return folder


def _gate(base: Path, new: Path) -> int:
    command = [sys.executable, "-m", "twofour", "bench", "gate", str(base), str(new), "--max-regress", "tpot=3%"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
