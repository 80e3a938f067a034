"""The session of bench/gpu, offline, from the checkout, with nothing of it installed, in under nine minutes.

    python tests/gpu/run.py [--results DIR] [--stages LIST]        (or: make gpu)

Leaves a file of rows for each stage in DIR, bench/results if not said otherwise; `twofour bench report FILE` prints
it. Exit status 0: all passed; 1: something failed; 3: nothing was measured, for there is no CUDA device.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    with package() as path, tempfile.TemporaryDirectory() as cache:
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        environment = {**os.environ, **offline, "PYTHONPATH": path, "TWOFOUR_CACHE": cache}
        session = [sys.executable, "-m", "twofour.bench.gpu", "--tests", str(ROOT / "tests" / "gpu")]
        return subprocess.run([*session, *sys.argv[1:]], cwd=ROOT, env=environment).returncode


@contextmanager
def package() -> Iterator[str]:
    """Lay out the package by links: root/ is twofour, the folders beside it are its sub-packages."""
    with tempfile.TemporaryDirectory() as path:
        made = Path(path, "twofour")
        made.mkdir()
        for source in (*(ROOT / "root").iterdir(), ROOT / "prune", ROOT / "serve", ROOT / "bench"):
            if source.name != "__pycache__":
                (made / source.name).symlink_to(source)
        yield path


if __name__ == "__main__":
    sys.exit(main())
