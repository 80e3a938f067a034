"""What opens a server: headers and certificates; no value of a header is ever quoted."""

import json
import traceback
from pathlib import Path
from typing import Any

import certificates
import pytest

from twofour.bench.load import decode
from twofour.bench.load.access import Access
from twofour.bench.load.decode import Exchange
from twofour.bench.load.keys import read_headers, read_key
from twofour.bench.load.service import Service
from twofour.prune.errors import InputError

SECRET = "token-0123456789"


def test_a_key_is_a_header_and_headers_are_as_they_were_given() -> None:
    assert Access("k").fields() == {"Authorization": "Bearer k"}
    assert Access(headers={"api-key": SECRET, "X-Org": "7"}).fields() == {"api-key": SECRET, "X-Org": "7"}
    assert Access().fields() == {}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"headers": {"X": f"{SECRET}\r\nY: 1"}}, "more than printable ASCII"),
        ({"headers": {"X": f"{SECRET}é"}}, "more than printable ASCII"),
        ({"headers": {"a b": SECRET}}, "a name that is none"),
        ({"headers": {"content-LENGTH": SECRET}}, "the client sets content-LENGTH itself"),
        ({"headers": {"authorization": SECRET}, "api_key": SECRET}, "give one of them"),
        ({"api_key": f"{SECRET}\nother"}, "the API key has"),
        ({"ca_file": Path("a"), "insecure": True}, "not both"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_not_quoted(given: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        Access(**given)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_nothing_shows_a_value() -> None:
    access = Access(headers={"Authorization": f"Basic {SECRET}"})
    assert SECRET not in repr(access) + repr(Service("h", "m", access)) + json.dumps(
        Service("h", "m", access).described()
    )


def test_what_a_server_sends_back_of_a_header_is_hidden_and_its_common_words_are_not() -> None:
    access = Access(headers={"Authorization": f"Bearer {SECRET}", "X-Trace": "true", "X-Long": "a secret-two"})
    assert access.secrets == (f"Bearer {SECRET}", SECRET, "a secret-two", "secret-two")
    body = json.dumps({"error": {"message": f"Bearer {SECRET} is not true; secret-two"}}).encode()
    refused = decode.record(Exchange(0, status=401, reads=[(1.0, body)]), access.secrets)
    assert refused.error == "status 401: ... is not true; ..."
    assert Access(headers={"X-Short": "secret"}).secrets == ("secret",)


def test_headers_are_read_from_flags_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"api-key = {SECRET}==\n\nX-Org=7\n")
    assert read_headers(["X-More=a=b"], file) == {"api-key": f"{SECRET}==", "X-Org": "7", "X-More": "a=b"}
    assert read_headers([], None) == {}


@pytest.mark.parametrize(
    ("flags", "content", "match"),
    [
        ([SECRET], b"", "a header is no NAME=VALUE"),
        ([], f"X-A=1\n{SECRET}".encode(), "line 2 of .* is no NAME=VALUE"),
        ([f"x-a={SECRET}"], b"X-A=1", "header x-a is given twice"),
        ([], f"X-A={SECRET}".encode() + b"\xff", "no UTF-8"),
    ],
)
def test_what_is_no_header_is_refused_and_not_quoted(
    flags: list[str], content: bytes, match: str, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        read_headers(flags, file)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(InputError, match="cannot read the headers"):
        read_headers([], tmp_path / "missing")


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    assert read_key(None, "MY_KEY") == SECRET
    monkeypatch.setenv("MY_KEY", " ")
    for name in ("MY_KEY", "NO_SUCH_KEY"):
        with pytest.raises(InputError, match=f"no key in {name}"):
            read_key(None, name)


def test_certificates(tmp_path: Path) -> None:
    made = certificates.made_in(tmp_path)
    assert [c["subject"] for c in Access(ca_file=made).context().get_ca_certs()] == [((("commonName", "127.0.0.1"),),)]
    assert not Access(insecure=True).context().check_hostname
    assert [a.trust() for a in (Access(), Access(ca_file=made), Access(insecure=True))] == [
        "of the system",
        "of a file",
        "any",
    ]
    for bad in ("missing.pem", "key.pem"):
        with pytest.raises(InputError, match=rf"no certificate can be read from .*{bad}"):
            Access(ca_file=tmp_path / bad).context()
