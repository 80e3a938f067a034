"""The README and the pages of docs/ are true: their commands run as they stand, their flags exist, and their texts and
pictures are those of the result files.
"""

import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from documentation import GENERATED, PAGES, README, ROOT, blocks, commands, name, spans, words

from twofour import cli

DOCS = ROOT / "docs"
BUSY = 3  # of bench: it ran, but the machine was too busy for the figures to count
PORT = "8024"  # of the server in the documentation
CHARTS = ("--svg", "--tokens-svg", "--bytes-svg", "--speed-svg", "--cost-svg")
COMMANDS = ("twofour", "curl", "make", "pip")

each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@cache
def printed(*arguments: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main(arguments) == 0
    return out.getvalue()


def generated() -> list[tuple[Path, bool, list[str], str]]:
    """Page, whether it is a part, the arguments of the command, and what is shown; "" where that is a picture."""
    found = [(page, *parts) for page in PAGES for parts in GENERATED.findall(page.read_text())]
    return [(page, bool(part), shlex.split(command)[1:], shown) for page, part, command, shown in found]


TEXTS = [(name(page), part, given, shown) for page, part, given, shown in generated() if shown]
PICTURES = [given for _, _, given, shown in generated() if not shown]


@pytest.mark.parametrize(("page", "part", "given", "shown"), TEXTS, ids=str)
def test_texts_are_printed_by_their_commands(page: str, part: bool, given: list[str], shown: str) -> None:
    text = printed(*given[:-1], str(ROOT / given[-1]))
    assert f"\n{shown}" in f"\n{text}" if part else shown == text


def test_every_text_of_a_result_file_is_generated() -> None:
    """The README shows a headline, and benchmark.md all of it; nobody takes the comment away."""
    shown = {(page, part, given[-1].rpartition("/")[2]) for page, part, given, _ in TEXTS}
    assert ("README.md", True, "demo.json") in shown and ("docs/benchmark.md", False, "demo.json") in shown
    assert ("docs/pruning.md", False, "pruning-demo.json") in shown


def test_pictures_are_drawn_from_result_files(tmp_path: Path) -> None:
    drawn: set[Path] = set()
    for given in PICTURES:
        places = {given[at + 1] for at, word in enumerate(given) if word in CHARTS}
        cli_words = [str(tmp_path / Path(word).name) if word in places else word for word in given]
        printed(*cli_words[:2], str(ROOT / cli_words[2]), *cli_words[3:])
        for place in places:
            assert (tmp_path / Path(place).name).read_text() == (ROOT / place).read_text(), place
        drawn |= {ROOT / place for place in places}
    assert drawn == set(DOCS.glob("*.svg"))


def test_a_result_file_is_the_summary_of_a_report(tmp_path: Path) -> None:
    """The committed file has no runs left to drop: its own summary is itself."""
    result, again = ROOT / "bench" / "results" / "demo.json", tmp_path / "again.json"
    printed("bench", "report", str(result), "--summary", str(again))
    assert again.read_text() == result.read_text()
    assert json.loads(result.read_text())["valid"] is True


@cache
def help_of(verb: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    return out.getvalue()


@cache
def flags(verb: str) -> frozenset[str]:
    return frozenset(re.findall(r"--[a-z][a-z-]*", help_of(verb)))


@cache
def verbs() -> tuple[str, ...]:
    first, second = (re.findall(r"^    ([a-z-]+)(?:  |$)", help_of(verb), re.MULTILINE) for verb in ("", "bench"))
    return (*(f"bench {verb}" for verb in second), *(verb for verb in first if verb != "bench"))


def verb_of(command: list[str]) -> str | None:
    """The verb that a command begins with, be it that `twofour` is left out."""
    said = " ".join(command[1:] if command[0] == "twofour" else command) + " "
    return next((verb for verb in verbs() if said.startswith(f"{verb} ")), None)


def before_dashes(command: list[str]) -> list[str]:
    """What stands behind -- goes to another program."""
    return command[: command.index("--")] if "--" in command else command


@each_page
def test_flags_exist(page: Path) -> None:
    """Those behind a verb are its own; those that stand alone are some verb's."""
    every = frozenset[str]().union(*map(flags, verbs()))
    for said in [*spans(page), *(line for block in blocks(page, "console") for line in block.splitlines())]:
        command = before_dashes(words(said)) or ["--"]
        verb = verb_of(command)
        assert verb or command[0] != "twofour" or command[1:] in ([], ["bench"]), f"{said}: there is no such verb"
        if verb or command[0].startswith("--"):
            known = flags(verb) if verb else every
            unknown = {word.partition("=")[0] for word in command if word.startswith("--")} - known - {"--"}
            assert not unknown, f"{said}: {verb or 'no verb'} has no {', '.join(unknown)}"


@pytest.mark.parametrize(("verb", "page"), [("serve", "serving"), ("prune", "pruning"), ("eval", "pruning")])
def test_all_flags_are_documented(verb: str, page: str) -> None:
    said = {word for span in spans(DOCS / f"{page}.md") for word in words(span)}
    assert flags(verb) - {"--help"} <= said


def test_all_verbs_are_documented() -> None:
    said = {verb_of(words(span)) for page in PAGES for span in spans(page)}
    said |= {verb_of(words(line)) for line in commands()}
    assert set(verbs()) <= said


def targets() -> list[str]:
    said = [*commands(), *(span for page in PAGES for span in spans(page))]
    return sorted({line for line in said if re.match(r"make [a-z]", line)})


@pytest.mark.parametrize("line", targets())
def test_make_knows_its_targets(line: str) -> None:
    done = subprocess.run([*words(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_readme_has_two_commands() -> None:
    assert blocks(README, "console")[:2] == ["make demo\n", "make test\n"]


def test_extras_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    text = "\n".join(page.read_text() for page in PAGES)
    installed = {extra for found in re.findall(r"pip install \S*\[([\w,-]+)\]", text) for extra in found.split(",")}
    named = set(re.findall(r"extra\s+`([\w-]+)`", text))
    assert installed and named and installed | named <= known


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: str, url: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], cwd=folder)
    try:
        deadline_s = time.monotonic() + 120
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(command: str) -> str:
    """Run a curl line with Python, which is here wherever this test is."""
    url, *rest = shlex.split(command)[1:]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    body, (key, _, value) = options.get("-d"), options.get("-H", "").partition(": ")
    request = urllib.request.Request(url, body and body.encode(), {key: value} if key else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def check(command: str, answer: str) -> None:
    """What is said of an answer."""
    if "/chat/" in command:
        assert json.loads(answer)["choices"][0]["message"]["role"] == "assistant"
    if command.endswith("/metrics"):
        there = {line.split()[2] for line in answer.splitlines() if line.startswith("# TYPE ")}
        rows = re.findall(r"^\| (`(?:vllm:|twofour:|http_).*?) \|", (DOCS / "serving.md").read_text(), re.MULTILINE)
        listed = {metric for row in rows for metric in re.findall(r"`(.*?)`", row)}
        assert {metric for metric in there if not metric.endswith("_created")} == listed


def test_commands_run_in_order(roomy_model_folder: Path, tmp_path: Path) -> None:
    """Of all pages, each once, with a tiny model in the place of the demo model, which has a test of its own."""
    (tmp_path / "smol").symlink_to(roomy_model_folder)
    assert all(words(line)[0] in COMMANDS for line in commands()), "nobody runs this"
    port = str(free_port())
    lines = [line.replace(PORT, port) for line in commands() if line.startswith(("twofour", "curl"))]
    assert lines.pop(0) == "twofour demo-model smol"
    asked = [line for line in lines if port in line and not line.startswith("twofour serve")]
    for line in [line for line in lines if line not in asked]:
        if line.startswith("twofour serve"):
            with serving(line, f"http://127.0.0.1:{port}", tmp_path):
                for question in asked:
                    check(question, ask(question)) if question.startswith("curl") else run(question, tmp_path)
        else:
            run(line, tmp_path)
    assert (tmp_path / "report" / "report.html").exists() and (tmp_path / "smol-zeros" / "config.json").exists()
    examples = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    subprocess.run([sys.executable, "-c", examples], cwd=tmp_path, check=True)


def run(line: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *shlex.split(line)], cwd=folder, capture_output=True, text=True)
    assert done.returncode in ((0, BUSY) if " bench " in line else (0,)), f"{line}\n{done.stdout}\n{done.stderr}"
