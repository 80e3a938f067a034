"""A run that is killed again and again, whenever it happens to be, and asked for again: the same bytes in the end."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twofour.prune import PruneConfig, check, prune
from twofour.prune.format.checkpoint import digests

CONFIG = {"preset": "best", "calibration": "self", "samples": 64, "length": 128}
RUN = f"""
import sys
import torch
from twofour.prune import PruneConfig, prune
from twofour.prune.recovery import training

torch.set_num_threads(int(sys.argv[3]))
training.SAVE_S = 0.0
training.SAVE_SHARE = 0
print("ready", flush=True)
prune(sys.argv[1], sys.argv[2], PruneConfig(**{CONFIG!r}))
"""
KILLS, LONGEST_S = 12, 0.6


def killed_after(command: list[str], seconds: float) -> bool:
    """Whether it was killed; False: it had ended by then, well."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"  # imports take longest
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    assert process.returncode == 0
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tiny_model_folder: Path, tmp_path: Path, seed: int) -> None:
    draw, out = random.Random(seed), tmp_path / "out"
    command = [sys.executable, "-c", RUN, str(tiny_model_folder), str(out), str(torch.get_num_threads())]
    kills = 0
    while kills < KILLS and not out.exists() and killed_after(command, draw.uniform(0.05, LONGEST_S)):
        kills += 1
    if not out.exists():
        assert not killed_after(command, 300.0)
    prune(tiny_model_folder, tmp_path / "whole", PruneConfig(**CONFIG))  # type: ignore[arg-type]
    assert kills >= 2 and digests(out) == digests(tmp_path / "whole") and check(out).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
