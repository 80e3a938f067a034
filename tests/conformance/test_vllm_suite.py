"""vLLM's own tests of its endpoint, against this one with the demo model.

The files come from vLLM's source archive. vllm_adapter.py takes the place of what they import. vllm.md lists the tests
that cannot pass here, and why: those must fail, or are not run where only the model decides; all others must pass.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.demo]
HERE = Path(__file__).parent
FILES = (
    "openai/completion/test_completion.py",
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/test_chunked_prompt.py",
    "serve/tokenize/test_tokenization.py",
)
MODEL = re.compile(r'^MODEL_NAME = (".*")$', re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)\.py::(\w+)` \| (model:)?", re.MULTILINE)


def copy(source: Path, folder: Path, model: Path) -> None:
    """The test files, with our model instead of theirs."""
    for file in FILES:
        text = (source / "tests" / "entrypoints" / file).read_text()
        named = MODEL.search(text)
        to = folder / "tests" / "entrypoints" / file
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text.replace(named[1], f'"{model}"') if named else text)
        for parent in to.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()


def run(folder: Path, url: str, without: set[str]) -> ElementTree.Element:
    """Run the copied files; the report that pytest writes."""
    report = folder / "report.xml"
    chosen = " and ".join(f"not {name}" for name in ["lora", *sorted(without)])
    options = [
        "-p",
        "vllm_adapter",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        f"--junitxml={report}",
        "-k",
        chosen,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{folder}", "TWOFOUR_URL": url, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=2400,
    )
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-4000:]
    return ElementTree.parse(report).getroot()


def test_vllm_suite(
    vllm_source: Path, serve: Any, demo_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(vllm_source, tmp_path, demo_model_folder)
    rows = ROW.findall((HERE / "vllm.md").read_text())
    judged = {name for _, name, by_model in rows if by_model}
    with serve(demo_model_folder, "--served-model-name", str(demo_model_folder)) as url:
        cases = [*run(tmp_path, url, judged).iter("testcase")]
    failed, skipped, passed = set(), set(), 0
    for case in cases:
        name = (str(case.get("classname")).rpartition(".")[2], str(case.get("name")).partition("[")[0])
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed.add(name)
        elif "skipped" in outcomes:
            skipped.add(name)
        else:
            passed += 1
    with capsys.disabled():
        print(f"\nvLLM's tests: {len(cases)} cases, {passed} passed; {len(failed)} functions cannot pass (vllm.md)")
    assert failed == {(file, name) for file, name, by_model in rows if not by_model}
    assert not skipped
    assert passed > 25
