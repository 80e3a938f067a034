"""The release: the sdist carries the C++ sources, and the wheel built from it the compiled kernels, and only those."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")
EXTENSION = "twofour/serve/kernels/cpu/_cpu.abi3.so"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.mark.slow
def test_the_sdist_holds_every_source(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[-1] for name in sdist.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "serve/kernels/cpu/src").iterdir()}
    assert sources and sources | {"setup.py"} <= names


@pytest.mark.slow
def test_the_wheel_holds_kernels_that_run(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert "cp311-abi3" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("twofour/serve/kernels/cpu/src/")]
        path = archive.extract(EXTENSION, tmp_path)
    # Neither the C++ library nor an OpenMP of its own: torch's is the only one in the process.
    assert b"libstdc++" not in Path(path).read_bytes() and b"libgomp" not in Path(path).read_bytes()
    spec = importlib.util.spec_from_file_location("twofour.serve.kernels.cpu._cpu", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.layout_bytes(0, 9, 65) == 2 * 2 * 576
