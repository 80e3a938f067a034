"""A run is read again from its document, and is the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, run

from twofour.bench.load import metrics, slo
from twofour.bench.load.access import Access
from twofour.bench.load.run import document
from twofour.bench.load.service import Service
from twofour.bench.load.stored import read
from twofour.bench.load.table import table
from twofour.prune.errors import InputError


def test_what_is_read_again_is_what_was_written() -> None:
    done = run(CLOSED, 0, 0.01)
    written = json.loads(json.dumps(document(done, with_records=True)))
    again = read(written)
    once_more = json.loads(json.dumps(document(again, with_records=True)))
    assert once_more.pop("schedule_sha256") != written.pop("schedule_sha256")  # of prompts, which are not kept
    assert once_more == written
    assert table(again) == table(done)
    assert again.summary == done.summary
    assert again.records[3].chunks[0].at == pytest.approx(done.records[3].chunks[0].at - done.started_at)


@pytest.mark.parametrize("trust", [{}, {"insecure": True}, {"ca_file": Path("ca.pem")}])
def test_how_a_server_was_asked_and_opened_is_still_known(trust: dict[str, Any]) -> None:
    opened = Access("key", {"X-Org": "secret", "api-key": "secret"}, **trust)
    asked = Service("https://h", "m", opened, api="chat", plain=True, body={"top_k": 20, "stop": None})
    done = replace(run(CLOSED, 0, 0.01), service=asked, template_tokens=7, message_tokens=5.5)
    again = read(json.loads(json.dumps(document(done, with_records=True))))
    assert again.service.described() == asked.described() and (again.template_tokens, again.message_tokens) == (7, 5.5)
    assert table(again) == table(done) and "secret" not in str(again.service.access.fields())


def test_failed_requests_survive_and_what_is_infinite_is_null() -> None:
    done = run(CLOSED, 0, 0.01)
    for record in done.records[:8]:
        record.error = "reset: gone"
    failed = replace(done, summary=metrics.summarise(done.records, done.started_at))
    assert failed.summary.ttft.adjusted_p50 == math.inf
    again = read(json.loads(json.dumps(document(failed, with_records=True))))
    assert again.records[2].error == "reset: gone" and again.summary.errors == {"reset": 8}
    assert again.summary.ttft.adjusted_p50 is None


@pytest.mark.parametrize(
    ("chunk", "why"), [([0.1, 1.9], "whole number"), ([0.1, None], "whole number"), ([None, 1], "at no time")]
)
def test_chunks_are_not_repaired(chunk: list[Any], why: str) -> None:
    written = document(run(CLOSED, 0, 0.01), with_records=True)
    written["records"][2]["chunks"][1] = chunk
    with pytest.raises(ValueError, match=why):
        read(written)


def test_what_was_promised_is_read_with_what_was_kept() -> None:
    done = run(CLOSED, 0, 0.01)
    for record in done.records[:8]:
        record.error = "reset: gone"
    for promise in ("ttft_p50=500ms", "e2e=1s,tpot=1ms"):
        judged = replace(done, slo=slo.attain(slo.parse(promise), done.records))
        again = read(json.loads(json.dumps(document(judged, with_records=True))))
        assert again.slo == judged.slo and again.slo is not None and again.slo.attained is False


def test_a_document_without_requests_is_refused() -> None:
    with pytest.raises(InputError, match="give what --out wrote"):
        read(document(run(CLOSED, 0, 0.01), with_records=False))
