"""What the access log says, and what it leaves out."""

import json
import logging
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig

KEYS = EdgeConfig(api_keys=(digest(b"first"),))


def test_the_access_log_has_no_prompt(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "twofour.access"):
        shared.client.post("/v1/completions?key=secret", json={"model": "m", "prompt": "my secret"})
        shared.client.post("/v1/completions", json={"model": "other", "prompt": "my secret"})
        shared.eventually(lambda: "model_not_found" in caplog.text)
    records = [record for record in caplog.records if record.name == "twofour.access"]
    lines = [json.loads(record.getMessage()) for record in records[-2:]]  # an older request may be logged only now
    assert "secret" not in caplog.text
    assert [(line["path"], line["status"], line["rejection"]) for line in lines] == [
        ("/v1/completions", 200, None),
        ("/v1/completions", 404, "model_not_found"),
    ]
    assert lines[0]["sent_bytes"] > 100
    assert lines[0]["seconds"] > 0


def test_of_probes_only_failures_are_in_the_log(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = launch(edge=EdgeConfig(api_keys=KEYS.api_keys, open_paths=frozenset({"/health", "/ready"})))
    with caplog.at_level(logging.INFO, "twofour.access"):
        for draining in (False, True, False):
            server.lifecycle.draining = draining
            for _ in range(2):
                server.client.get("/health")
                server.client.head("/ready")
                server.client.get("/metrics", headers={"Authorization": "Bearer first"})
        server.client.get("/metrics")
        server.engine.healthy = False
        server.client.get("/health")
        server.eventually(lambda: "/health" in caplog.text)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "twofour.access"]
    told = [(line["path"], line["status"]) for line in lines]
    assert told == [("/ready", 503), ("/ready", 503), ("/metrics", 401), ("/health", 503)]
