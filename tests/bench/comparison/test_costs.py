"""What tokens cost by the time that they took of a server's steps, and when a pruning is paid back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, OF_URLS, arm, findings
from several_findings import NAMED, SPARSE, TOKEN_S, several

from twofour.bench.comparison.costs import by_steps
from twofour.bench.comparison.document import document
from twofour.bench.comparison.experiment import Findings
from twofour.bench.comparison.served import pruning_minutes, steps_since
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.step_log import Glance, Step
from twofour.bench.report.forms import Report

STEPS = [Step(20, 0, 20, 0.005), Step(0, 2, 44, 0.003), Step(0, 1, 30, 0.002)] * 8


def with_steps(steps: list[Step], **changed: Any) -> Findings:
    found = findings(OF_URLS, **changed)
    return replace(found, runs=[replace(each, steps=steps) for each in found.runs])


def test_input_and_output_together_are_the_cost_of_the_machine() -> None:
    found = with_steps(STEPS)
    split = by_steps(found, "dense")
    assert split and split["steps"] == 4 * len(STEPS) and 0 < split["share_input"] < 1
    told = document(found)
    dense = {kind: told["metrics"][f"{kind}_tokens_per_s"]["dense"] for kind in ("output", "total")}
    hourly = 3600 * (split["input"] * (dense["total"] - dense["output"]) + split["output"] * dense["output"]) / 1e6
    assert hourly == pytest.approx(0.36)
    assert told["step_cost"]["dense"] == split
    assert f"dense ${split['input']:.4f} and ${split['output']:.4f}" in " ".join(Report(told).table().split())


def test_without_a_log_or_a_price_it_is_not_said() -> None:
    for found in (findings(OF_URLS), with_steps(STEPS, price=None), with_steps(STEPS[:3])):
        assert "time in the server's steps" not in Report(document(found)).table()
    unpriced = by_steps(with_steps(STEPS, price=None), "sparse")
    assert unpriced and unpriced["input"] is None and unpriced["share_output"] > 0


def test_a_pruning_is_paid_back_by_what_each_token_saves() -> None:
    arms = {"dense": arm("dense", 1000), "sparse": replace(arm("sparse", 500), pruning_minutes=12.5)}
    told = document(findings(OF_URLS, arms=arms))
    ratio, rate = told["cost"]["blended"]["ratio"], told["metrics"]["total_tokens_per_s"]["dense"]
    assert told["payback"]["tokens"] == pytest.approx(12.5 * 60 * rate / (1 - ratio["point"]))
    assert told["payback"]["low"] < told["payback"]["tokens"] < told["payback"]["high"]
    said = " ".join(Report(told).table().split())
    assert "The pruning of 2:4 took 12.5 minutes." in said
    assert f"after {told['payback']['tokens'] / 1e6:.2g} million tokens" in said and "0 million" not in said
    assert document(findings(OF_URLS))["payback"] is None
    slower = {"dense": OF_URLS["sparse"], "sparse": OF_URLS["dense"]}
    never = document(findings(slower, arms=arms))
    assert never["payback"]["tokens"] is None and "paid back" not in Report(never).table()
    opened = document(findings(OF_URLS, replace(CLOSED, concurrency=None, rate=2.0), arms=arms))
    assert opened["payback"] is None


def test_of_named_arms_each_has_its_own() -> None:
    facts = {name: arm(name, 1000) for name in TOKEN_S}
    facts[SPARSE] = replace(facts[SPARSE], pruning_minutes=3.0)
    told = several(arms=facts)
    assert [name for name, each in told["payback"].items() if each] == [SPARSE]
    assert f"The pruning of {SPARSE} took 3.0 minutes." in Report(told).table() and set(told["step_cost"]) == set(NAMED)


LOG = {
    "total": 7,
    "prefill_tokens": [9, 0, 0],
    "decodes": [0, 1, 2],
    "kv_tokens": [9, 10, 12],
    "seconds": [0.1, 0.2, 0.3],
}


@pytest.mark.parametrize(
    ("before", "after", "fresh"),
    [
        (Glance(5, []), LOG, [Step(0, 1, 10, 0.2), Step(0, 2, 12, 0.3)]),
        (Glance(0, []), LOG, [Step(9, 0, 9, 0.1), Step(0, 1, 10, 0.2), Step(0, 2, 12, 0.3)]),  # older ones are gone
        (Glance(7, []), LOG, []),
        (None, LOG, []),
        (Glance(5, []), None, []),
        (Glance(5, []), {"total": 7, "seconds": [0.1]}, []),
    ],
)
def test_only_what_the_engine_did_since_then_counts(
    before: Glance | None, after: dict[str, Any] | None, fresh: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endpoint, "step_log", lambda _: after)
    assert steps_since(Endpoint("http://a", "m"), before) == fresh


def test_how_long_a_pruning_took_stands_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "twofour.json").write_text('{"minutes": 2.5}')
    assert pruning_minutes(str(tmp_path)) == 2.5
    for not_pruned in (str(tmp_path / "none"), "hub/id"):
        assert pruning_minutes(not_pruned) is None
    (tmp_path / "twofour.json").write_text('{"minutes": null}')
    assert pruning_minutes(str(tmp_path)) is None
