import argparse
from pathlib import Path

import pytest

from twofour.bench.commands import service_flags
from twofour.bench.load.access import Access
from twofour.bench.load.service import Service
from twofour.bench.proof.mock import Script, serving
from twofour.prune.errors import InputError


def read(*words: str, url: str = "http://h") -> Service:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    service_flags.add_arguments(parser)
    return service_flags.read(parser.parse_args([url, "--model", "m", *words]))


def test_certificates_of_plain_http_are_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read("--insecure", url="https://h")
    read()
    assert capsys.readouterr().err == ""
    read("--insecure", url="http://h?key=secret")
    read("--ca-file", str(tmp_path / "ca"))
    told = capsys.readouterr().err
    assert told.count("plain http") == 2 and "--insecure does nothing" in told and "--ca-file does nothing" in told
    assert "secret" not in told


def test_what_is_asked_for_without_flags() -> None:
    assert read() == Service("http://h", "m")


def test_every_flag_is_in_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers, certificates = tmp_path / "headers", tmp_path / "ca"
    headers.write_text("X-Org=7")
    monkeypatch.setenv("MY_KEY", "secret")
    opened = [
        "--api-key-env",
        "MY_KEY",
        "--header",
        "X-B=1",
        "--header-file",
        str(headers),
        "--ca-file",
        str(certificates),
    ]
    form = ["--api", "chat", "--plain", "--timeout", "9", "--length-field", "max_completion_tokens"]
    fields = [
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "20",
        "--body",
        '{"stop": ["x"], "min_tokens": null}',
    ]
    assert read(*opened, *form, *fields) == Service(
        "http://h",
        "m",
        Access("secret", {"X-Org": "7", "X-B": "1"}, certificates),
        plain=True,
        timeout_s=9,
        api="chat",
        length_field="max_completion_tokens",
        body={"temperature": 0.5, "top_p": 0.9, "top_k": 20, "stop": ["x"], "min_tokens": None},
    )
    assert read("--insecure").access.insecure


def test_an_address_in_full_says_which_api() -> None:
    assert read(url="http://h/v1/chat/completions").api == "chat"
    assert read(url="http://h/v1/completions").api == "completions"
    with pytest.raises(InputError, match="the URL is that of the chat API"):
        read("--api", "completions", url="http://h/v1/chat/completions")


def test_the_only_model_is_asked_for() -> None:
    parser = argparse.ArgumentParser()
    service_flags.add_arguments(parser)
    with serving(Script()) as mock:
        assert service_flags.service(parser.parse_args([]), mock.url).model == "mock"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--body", "{"], "--body is no JSON"),
        (["--body", "[1]"], "no JSON object"),
        (["--body", '{"a": NaN}'], "NaN is no JSON"),
        (["--temperature", "nan"], "no number"),
        (["--body", '{"stream": false}'], "cannot set stream"),
        (["--body", '{"n": 2}'], "cannot set n"),
        (["--temperature", "1", "--body", '{"temperature": 0}'], "cannot set temperature"),
        (["--timeout", "0"], "--timeout is a number above 0"),
        (["--api-key-env", "NO_SUCH_KEY"], "no key in NO_SUCH_KEY"),
        (["--header", "x"], "no NAME=VALUE"),
        (["--header", "Host=x"], "the client sets Host itself"),
        (["--ca-file", "a", "--insecure"], "not both"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read(*words)
