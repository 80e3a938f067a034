"""Several arms: their figures against the first, corrected verdicts, the fronts, and what is advised."""

from dataclasses import replace
from statistics import geometric_mean
from typing import Any

import pytest
from bench_findings import CLOSED
from several_findings import DENSE, INT8, MIXED, NAMED, QUALITIES, SPARSE, TOKEN_S, several

from twofour.bench.stats import chance, holm


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return several()


def test_every_figure_is_paired_with_the_first(whole: dict[str, Any]) -> None:
    tpot = whole["metrics"]["tpot_mean"]["arms"]
    assert list(tpot) == [DENSE, INT8, SPARSE, MIXED] and tpot[DENSE]["ratio"] is None
    for name, times in TOKEN_S.items():
        assert tpot[name]["value"] == pytest.approx(geometric_mean(times))
    by_hand = geometric_mean([b / a for a, b in zip(TOKEN_S[DENSE], TOKEN_S[SPARSE], strict=True)])
    assert tpot[SPARSE]["ratio"]["point"] == pytest.approx(by_hand) and tpot[SPARSE]["verdict"] == "better"
    assert whole["metrics"]["output_tokens_per_s"]["arms"][SPARSE]["verdict"] == "better"
    assert whole["bytes"]["linear_bytes"][INT8] == {"value": 531, "ratio": 0.531, "verdict": "better"}
    cost = whole["cost"]["blended"]
    assert cost[SPARSE]["value"] / cost[DENSE]["value"] == pytest.approx(cost[SPARSE]["ratio"]["point"])


def test_chances_are_corrected_in_two_families(whole: dict[str, Any]) -> None:
    figures = {name: metric["arms"] for name, metric in whole["metrics"].items()}
    figures |= {f"cost {kind}": arms for kind, arms in whole["cost"].items()}
    first = figures.pop("cost blended")
    assert {name: first[name]["corrected"] for name in (INT8, SPARSE, MIXED)} == pytest.approx(
        holm({name: first[name]["chance"] for name in (INT8, SPARSE, MIXED)})
    )
    looked_at = {(name, arm): each["chance"] for name, arms in figures.items() for arm, each in arms.items()}
    corrected = holm({key: found for key, found in looked_at.items() if found is not None})
    assert len(corrected) > 20
    for (name, arm), found in corrected.items():
        assert figures[name][arm]["corrected"] == pytest.approx(found)
    pairs = list(zip(TOKEN_S[DENSE], TOKEN_S[MIXED], strict=True))
    assert figures["tpot_mean"][MIXED]["chance"] == pytest.approx(chance(pairs), rel=1e-3)


def test_what_alone_would_be_a_difference_is_none_among_many() -> None:
    shaky = [0.0101, 0.0201, 0.0130, 0.0116]  # over dense: 1.01, 1.005, 1.083, 1.055
    found = several(TOKEN_S | {MIXED: shaky})["metrics"]["tpot_mean"]["arms"][MIXED]
    assert found["corrected"] > 0.05 and found["verdict"] == "unclear" and found["chance"] < found["corrected"]


def test_the_fronts(whole: dict[str, Any]) -> None:
    assert whole["fronts"] == {
        "bytes": [SPARSE, INT8, DENSE],  # mixed has more bytes than int8, and loses more
        "speed": [SPARSE, INT8, DENSE],
        "dollars": [SPARSE, INT8, DENSE],
    }
    without = several(qualities={SPARSE: QUALITIES[SPARSE]})
    assert without["quality"][INT8] is None and without["fronts"]["bytes"] == [SPARSE, DENSE]


def test_without_kl_the_loss_is_that_of_perplexity() -> None:
    found = several(qualities={name: replace(each, kl=None) for name, each in QUALITIES.items()})
    assert found["fronts"]["bytes"] == [SPARSE, INT8, DENSE]
    assert found["quality"][SPARSE]["perplexity_ratio"] == pytest.approx(24.9 / 17.2)


def test_the_first_loses_nothing_by_definition(whole: dict[str, Any]) -> None:
    own = {"perplexity": 17.2, "perplexity_ratio": 1.0, "kl": 0.0, "agreement": 1.0}
    assert whole["quality"][DENSE] == own
    assert several(qualities={})["quality"][DENSE] == own | {"perplexity": None}


def test_advice_names_the_dense_arm_that_beats_2_4(whole: dict[str, Any]) -> None:
    of_sparse, of_mixed = whole["advice"]
    assert of_sparse.startswith(f"2:4 pays at this load: a token by {SPARSE} costs 0.9")
    assert f"one by {INT8}, and loses 0.410 nats per token against 0.003. No arm of dense" in of_sparse
    assert of_mixed.startswith(f"2:4 does not pay at this load: a token by {MIXED} costs 1.2")
    assert of_mixed.endswith(f"Take {INT8}.")
    alike = several(TOKEN_S | {SPARSE: [0.0057, 0.0108, 0.0067, 0.0059]}, qualities={})["advice"][0]
    assert alike.startswith(f"2:4 buys nothing clear at this load: a token by {SPARSE} costs 1.00")
    assert "nats" not in alike


def test_a_dense_arm_that_loses_more_is_no_rival() -> None:
    ruined = QUALITIES | {INT8: replace(QUALITIES[INT8], kl=2.0)}
    assert f"one by {DENSE}," in several(qualities=ruined)["advice"][0]


def test_an_open_loop_decides_by_the_whole_answer() -> None:
    found = several(experiment=replace(CLOSED, concurrency=None, rate=5.0))
    assert found["cost"] is None and found["primary"] == "e2e_p50" and found["fronts"]["dollars"] == []
    assert f"an answer by {SPARSE} takes" in found["advice"][0]


def test_arms_say_what_they_are(whole: dict[str, Any]) -> None:
    assert whole["arms"][INT8]["flags"] == list(NAMED[INT8].flags) and whole["arms"][MIXED]["kind"] == "mixture"
    assert whole["arms"][SPARSE]["memory"]["linear_bytes"] == 316 and whole["arms"][DENSE]["answer"] == "Paris, dense."
    assert whole["valid"] and len(whole["runs"]) == 16
