import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.bench.load import wire
from twofour.prune.errors import InputError

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"data: 0\r\n\r\n\r\n0\r\n\r\ndata: [DONE]\n\n"  # looks like framing, and is not


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return CHUNKED + b"".join(b"%X;x=y\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def feed(pieces: list[bytes]) -> tuple[wire.Response, bytes]:
    response = wire.Response()
    return response, b"".join(response.feed(piece) for piece in pieces)


@pytest.mark.parametrize(
    "message",
    [
        chunked(BODY, b"x", BODY * 9),
        chunked(BODY, b"x", BODY * 9, end=b"0\r\nX-Trailer: 1\r\n\r\n"),
        b"HTTP/1.1 503 No\r\ncontent-length: %d\r\n\r\n" % len(BODY + b"x" + BODY * 9) + BODY + b"x" + BODY * 9,
    ],
)
def test_wherever_the_bytes_are_cut_the_body_is_the_same(message: bytes) -> None:
    for cut in range(1, len(message)):
        response, body = feed([message[:cut], message[cut:]])
        assert (body, response.done, response.keep_alive) == (BODY + b"x" + BODY * 9, True, True)
    response, body = feed([message[i : i + 1] for i in range(len(message))])
    assert body == BODY + b"x" + BODY * 9
    response, _ = feed([message[:-1]])
    assert not response.done and not response.end()


@given(st.lists(st.binary(min_size=1), max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_chunks_and_reads_are_independent(pieces: list[bytes], cuts: list[int]) -> None:
    message = chunked(*pieces)
    marks = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    response, body = feed([message[a:b] for a, b in pairwise(marks)])
    assert (body, response.done, response.status) == (b"".join(pieces), True, 200)


def test_without_a_length_the_body_ends_with_the_connection() -> None:
    response, body = feed([b"HTTP/1.1 200 OK\r\n\r\nab", b"c"])
    assert (body, response.done, response.keep_alive) == (b"abc", False, False)
    assert response.end() and response.done


def test_what_only_announces_the_answer_is_not_the_answer() -> None:
    message = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 -\r\nLink: a\r\n\r\n" + chunked(BODY)
    for cut in range(1, len(message)):
        response, body = feed([message[:cut], message[cut:]])
        assert (body, response.status, response.done, response.keep_alive) == (BODY, 200, True, True)
        assert "link" not in response.headers
    response, _ = feed([b"HTTP/1.1 103 -\r\n\r\n"])
    assert response.started and response.status is None and not response.end()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 204 -", b"HTTP/1.1 304 -\r\nContent-Length: 9", CHUNKED[:-4].replace(b"200", b"204")]
)
def test_a_status_without_a_body_is_complete_with_its_headers(head: bytes) -> None:
    response, body = feed([head + b"\r\n\r\n"])
    assert (body, response.done, response.keep_alive) == (b"", True, True)


def test_an_empty_body_is_complete_with_its_headers() -> None:
    assert feed([b"HTTP/1.1 204 -\r\nContent-Length: 0\r\n\r\n"])[0].done


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK\r\nConnection: close", b"HTTP/1.0 200 OK"])
def test_a_connection_that_will_close_is_not_kept(line: bytes) -> None:
    response, _ = feed([line + b"\r\nContent-Length: 0\r\n\r\n"])
    assert response.done and not response.keep_alive


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0 hello\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(message: bytes) -> None:
    with pytest.raises(wire.WireError):
        feed([message])


def test_an_address_is_read() -> None:
    assert wire.target("http://127.0.0.1:8000") == wire.Target("127.0.0.1", 8000, "/v1")
    assert wire.target("localhost:9/") == wire.Target("localhost", 9, "/v1")
    assert wire.target("http://host/pre/v1/") == wire.Target("host", 80, "/pre/v1")
    assert wire.target("http://[::1]:8").host == "::1"


def test_a_query_goes_with_every_request() -> None:
    to = wire.target("http://host/pre?api-version=1")
    assert wire.post(to, "/completions", b"", {}).startswith(b"POST /pre/v1/completions?api-version=1 HTTP/1.1")
    assert to.outside("/metrics") == "/pre/metrics?api-version=1"
    assert wire.target("http://host").outside("/v1/models") == "/v1/models"


def test_an_address_may_be_that_of_an_api_in_full() -> None:
    assert wire.target("https://h/v1beta/openai/chat/completions?a=1") == wire.Target(
        "h", 443, "/v1beta/openai", "a=1", tls=True
    )
    assert wire.target("h/completions/").path("/completions") == "/completions"
    assert wire.target("h/a/chat/completions").outside("/v1/models") == "/a/models"
    assert wire.target("h/v1/completions").outside("/metrics") == "/metrics"
    apis = [wire.api_of(url) for url in ("h/v1/chat/completions?a", "https://h/completions", "http://h/v1", "h")]
    assert apis == ["chat", "completions", None, None]


def test_a_port_is_named_where_it_is_not_the_schemes_own() -> None:
    urls = ["http://h", "https://h", "http://h:443", "https://h:80", "https://[::1]:443"]
    assert [wire.target(url).authority for url in urls] == ["h", "h", "h:443", "h:80", "[::1]"]


@pytest.mark.parametrize("url", ["ftp://host", "http://", "", "http://host:99999", "http://h:x"])
def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        wire.target(url)


def test_a_request_is_exactly_these_bytes() -> None:
    assert wire.post(wire.Target("::1", 8, "/v1"), "/completions", b"{}", {"Authorization": "Bearer key"}).split(
        b"\r\n"
    ) == [
        b"POST /v1/completions HTTP/1.1",
        b"Host: [::1]:8",
        b"Content-Type: application/json",
        b"Accept: text/event-stream",
        b"Content-Length: 2",
        b"Authorization: Bearer key",
        b"",
        b"{}",
    ]


@pytest.mark.parametrize("said", [b"a/b+c==", b"a\\/b+c==", b"\\u0061/b\\u002Bc==", b"a\\u002fb+c=\\u003d"])
def test_a_key_is_hidden_however_json_spells_it(said: bytes) -> None:
    assert wire.hidden(b"no key " + said + b" here", ("a/b+c==",)) == b"no key ... here"


@settings(max_examples=300)
@given(
    st.binary(max_size=9),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8),
    st.binary(max_size=9),
)
def test_nothing_of_a_key_is_left_in_base64_or_in_json_within_json(before: bytes, key: str, after: bytes) -> None:
    coded = base64.b64encode(before + key.encode() + after)
    for said in (coded, coded.replace(b"+", b"-").replace(b"/", b"_"), coded.replace(b"/", b"\\/")):
        left = wire.hidden(said, (key,))
        assert b"..." in left and len(left) <= len(said) - len(key) + 3
    nested = json.dumps(json.dumps({"key": json.dumps(key)})).encode()
    assert wire.hidden(nested, (key,)) == json.dumps(json.dumps({"key": json.dumps("...")})).encode()


@pytest.mark.parametrize("said", [b"a%2Fb%2Bc%3D%3D", b"a%2fb%2bc%3d%3d"])
def test_a_key_is_hidden_as_an_address_has_it(said: bytes) -> None:
    assert wire.hidden(b"no key " + said + b" here", ("a/b+c==",)) == b"no key ... here"


def test_all_of_a_key_beyond_ascii_is_hidden_in_base64() -> None:
    key = "ключ-ключ-ключ"
    left = wire.hidden(base64.b64encode(key.encode()), (key,))
    assert left.startswith(b"...") and len(left) <= 5


def test_a_short_key_hides_no_letters_of_base64() -> None:
    assert wire.hidden(b"YWJj ok", ("a",)) == b"YWJj ok"


def test_an_address_has_no_blanks() -> None:
    with pytest.raises(InputError) as refused:
        wire.target("http://127.0.0.1:1/a b?key=SECRET")
    assert "SECRET" not in str(refused.value)
