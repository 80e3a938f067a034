"""HEAD is answered wherever GET is."""

from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig

KEYS = EdgeConfig(api_keys=(digest(b"first"),))


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/v1/models/m", "/nope"])
def test_head_is_get_without_its_body(shared: Any, path: str) -> None:
    whole, head = shared.client.get(path), shared.client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(whole.content))
    assert shared.client.get(path).status_code == whole.status_code, "and the connection is as it was"


def test_head_of_what_has_no_get(shared: Any) -> None:
    answer = shared.client.head("/v1/completions")
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (405, b"", "POST")


def test_a_path_says_that_it_has_head(shared: Any) -> None:
    answer = shared.client.delete("/health")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_head_needs_the_key_that_get_needs(launch: Any) -> None:
    server = launch(edge=KEYS)
    assert [server.client.head(path).status_code for path in ("/health", "/v1/models")] == [200, 401]
