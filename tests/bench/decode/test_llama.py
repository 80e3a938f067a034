"""llama.cpp decodes the tokens that transformers decodes; without Node.js or its package, the remedy is told."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from twofour import cli
from twofour.bench.decode import llama
from twofour.prune.errors import InputError


def command(folder: Path) -> list[str]:
    return llama.command(folder, Path("m.gguf"), "auto", room=9)


def package(folder: Path, version: str) -> None:
    home = folder / "node_modules" / llama.PACKAGE
    home.mkdir(parents=True)
    (home / "package.json").write_text(json.dumps({"version": version}))


def test_without_node_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"there is no node on the PATH; install Node.js 20"):
        command(tmp_path)


def test_the_package_is_the_version_that_this_was_written_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(InputError, match=r'has no node-llama-cpp; run "npm install --ignore-scripts node-llama-cpp@3'):
        command(tmp_path)
    package(tmp_path, "3.0.0")
    with pytest.raises(InputError, match=r"has node-llama-cpp 3\.0\.0, whose internals are others"):
        command(tmp_path)
    package(tmp_path / "right", llama.VERSION)
    assert command(tmp_path / "right") == [
        *("/bin/node", str(llama.PROGRAM), str(tmp_path / "right"), "m.gguf", "auto", "9")
    ]
    assert llama.PROGRAM.is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not installed")
def test_llama_cpp_decodes_what_transformers_decodes(demo_model_folder: Path, tmp_path: Path) -> None:
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{llama.PACKAGE}@{llama.VERSION}"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("npm has no package index here")
    arms = [f"llama=llama.cpp:{demo_model_folder}", f"transformers=transformers,dtype=float32:{demo_model_folder}"]
    out = tmp_path / "decode.json"
    sizes = ["--context", "32", "--batch", "1", "2", "--steps", "12", "--rounds", "1", "--node", str(tmp_path)]
    assert cli.main(["bench", "decode", *arms, *sizes, "--out", str(out)]) in (0, 3)
    for cell in json.loads(out.read_text())["cells"]:
        assert cell["arms"]["transformers"]["same_tokens"]["llama"] >= 10, "of 15, until two are nearly as likely"
