"""A plan from end to end, on simulated machines: against brute force, by hand, and what it refuses."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from plans import LIMITS, profile, traffic

from twofour import bench
from twofour.bench.capacity import growth, hull, option, simulate, uncertainty
from twofour.bench.capacity import profile as profiles
from twofour.bench.capacity.demand import demand
from twofour.bench.capacity.document import chosen, document
from twofour.bench.capacity.plan import Asked, answers
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Promise, fleet_requests
from twofour.bench.capacity.table import table
from twofour.bench.load import slo
from twofour.bench.load.slo import attain
from twofour.bench.load.workload import Lengths
from twofour.bench.report import plan_rows
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Traffic
from twofour.cli import main
from twofour.prune.errors import InputError

SLO = "ttft_p95=100ms,itl_p95=30ms"


def asked(rate: float = 80.0, promised: str = SLO, **changed: Any) -> Asked:
    made = Asked(demand(traffic(rate)), Promise(slo.parse(promised)), requests=200)
    return replace(made, **changed)


def planned(
    question: Asked, made: Sequence[Profile], prices: Sequence[str] = (), today: date | None = None
) -> dict[str, Any]:
    offered = option.options(made, option.prices(prices))
    kept: dict[str, Any] = json.loads(
        json.dumps(document(question, answers(question, offered), today), allow_nan=False)
    )
    return kept


@pytest.fixture(scope="module", autouse=True)
def few_worlds() -> Iterator[None]:
    """All that is asked of them here can be seen in three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "WORLDS", 3)
        yield


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    question = asked(growth=growth.parse("5%/month"), demand=demand(traffic(80.0), mean=40.0))
    made = [profile(), profile("sparse", 1.6, quality_loss=0.05)]
    return planned(question, made, ["dense=2", "sparse=2.5@2026-01-01"], date(2026, 6, 1))


def test_the_fleet_is_that_of_brute_force(two: dict[str, Any]) -> None:
    question = asked()
    for made, found in zip([profile(), profile("sparse", 1.6)], two["options"], strict=True):

        def kept(count: int, made: Profile = made) -> bool:
            schedule = question.demand.schedule(80.0, fleet_requests(200, count), 0)
            records = simulate.simulate(schedule, made.replica, count)
            return attain(question.promise.slo, records).attained is True

        assert found["replicas"] == next(count for count in range(1, 20) if kept(count))
        assert found["machines"] == found["replicas"] + 1
    assert two["options"][0]["replicas"] > two["options"][1]["replicas"] > 0


def test_what_it_costs_by_hand(two: dict[str, Any]) -> None:
    dense = two["options"][0]
    hourly = 2 * dense["machines"]
    assert dense["cost"]["usd_per_month"] == hourly * 730
    used = dense["cost"]["at_mean"]
    assert used["blended"] == pytest.approx(1e6 * hourly / 3600 / (40 * 80))
    assert (used["input"] * 40 * 64 + used["output"] * 40 * 16) / 1e6 == pytest.approx(hourly / 3600)
    highest = 80 * (1 + dense["headroom"])
    assert dense["cost"]["at_capacity"]["blended"] == pytest.approx(1e6 * hourly / 3600 / (highest * 80))
    good = dense["at_peak"]["good_share"]
    assert dense["cost"]["per_1000_good_requests"] == pytest.approx(1000 * hourly / 3600 / (40 * good))
    assert dense["utilisation"] == pytest.approx(1 / (1 + dense["headroom"]))


def test_the_cheapest_is_chosen_and_said_first(two: dict[str, Any]) -> None:
    costs = {each["name"]: each["cost"]["usd_per_month"] for each in two["options"]}
    assert two["chosen"] == min(costs, key=costs.__getitem__)
    assert two["warnings"] == ["the price of sparse is 151 days old; give today's with --price sparse=DOLLARS"]
    said = table(two).splitlines()
    assert said[0] == f"warning: {two['warnings'][0]}"
    best = plan_rows.chosen(two)
    assert said[1].startswith(f"{best['machines']} machines of {two['chosen']} ({best['replicas']} and 1 spare) keep")
    assert f"${costs[two['chosen']]:,.0f} a month" in said[1] and "80 requests/s, 40 on average" in table(two)


def test_without_a_price_the_fewest_machines_are_chosen() -> None:
    found = planned(asked(), [profile(), profile("sparse", 1.6)], ["dense=0.01"])
    assert found["chosen"] == "sparse" and "no price of sparse" in found["warnings"][0]
    assert found["options"][1]["cost"] is None and "$ a month" in table(found)
    assert "$" not in table(planned(asked(), [profile()]))


def test_growth_starts_with_what_is_needed_now(two: dict[str, Any]) -> None:
    for each in two["options"]:
        months = [month["machines"] for month in each["growth"]["months"]]
        assert months[0] == each["machines"] and months == sorted(months)
        lasts = each["growth"]["lasts_months"]
        assert 1.05**lasts == pytest.approx(1 + each["headroom"])
    assert "With 5 % more traffic each month" in table(two)


def test_more_machines_than_one_and_its_curve(two: dict[str, Any]) -> None:
    replica = two["options"][0]["replica"]
    rates = [point["rate"] for point in replica["curve"]]
    assert rates == sorted(rates) and replica["highest_rate"] in rates
    assert {point["kept"] for point in replica["curve"]} == {True, False}
    at_peak = two["options"][0]["at_peak"]
    assert at_peak["ttft"]["p50"] <= at_peak["ttft"]["p95"] and 0 < at_peak["busy"] <= 1


def test_an_option_that_cannot_stands_beside_one_that_can() -> None:
    # A lone token takes 10.2 ms on dense.
    found = planned(asked(promised="itl_p95=9ms"), [profile(), profile("sparse", 2.0)], ["dense=1", "sparse=1"])
    assert found["chosen"] == "sparse" and found["options"][0]["machines"] is None
    assert "no number of machines of dense does" in table(found)


@pytest.mark.parametrize(
    ("promised", "why"),
    [
        ("itl_p95=5ms", "of a request that comes alone, itl_p95 is 10.2 ms on dense"),
        ("ttft_p95=1ms", "of a request that comes alone, ttft_p95 is 12.3 ms on dense"),
    ],
)
def test_a_promise_below_one_step_is_impossible(promised: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        planned(asked(promised=promised), [profile()])


def test_an_option_beyond_its_hull_is_left_out_where_another_is_not() -> None:
    small = profile("small", hull=hull.around([1, 2], [0, 512], [0, 6400]))
    found = planned(asked(), [small, profile("sparse", 1.6)])
    assert found["chosen"] == "sparse" and found["options"][0]["machines"] is None
    said = table(found)
    assert said.startswith(f"{plan_rows.LEFT_OUT}: small at") and "small is left out" in said


def test_headroom_beyond_what_was_measured_is_told() -> None:
    whole = asked(rate=10.0)
    trial = answers(whole, option.options([profile()], {}))[0]
    assert trial.fleet is not None
    most = max(each.most_running for each in trial.fleet.at_peak.found.usage)
    near = profile(hull=hull.around([1, most], [0, 512], [0, 6400]))
    found = planned(whole, [near])["options"][0]
    assert found["machines"] and [each for each in found["beyond"] if each.endswith("for its headroom")]
    assert table(planned(whole, [near])).startswith("extrapolated beyond what was measured: dense at")


def test_what_binds_an_option_that_misses_alone() -> None:
    found = planned(asked(promised="itl_p95=9ms,ttft_p95=1s"), [profile(), profile("sparse", 2.0)])
    assert found["options"][0]["replica"]["binding"] == "itl_p95"


@pytest.mark.parametrize(
    ("rows", "promised", "why"),
    [
        (30, "ttft_p99=1s", "ttft_p99 cannot be judged: 30 requests are too few"),
        (300, "itl_p95=1s", "itl_p95 cannot be judged: too few answers have a second token"),
    ],
)
def test_what_cannot_be_judged_is_no_missed_promise(rows: int, promised: str, why: str) -> None:
    trace = Trace("t.csv", [Row(number / 20, 64, 1) for number in range(rows)], 0)
    question = asked(promised=promised, demand=demand(Traffic(requests=None, trace=trace)))
    with pytest.raises(InputError, match=why):
        planned(question, [profile()])


def test_a_crowd_in_a_trace_is_shared_among_machines() -> None:
    """Forty come at a time: by itself no replica keeps the promise at any rate, and a fleet does."""
    trace = Trace("t.csv", [Row(float(number // 40), 64, 4) for number in range(800)], 0)
    question = asked(promised="ttft_p95=60ms", demand=demand(Traffic(requests=None, trace=trace)))
    found = planned(question, [profile()])["options"][0]
    assert found["replica"]["highest_rate"] is None and found["replicas"] > 1


def test_a_fleet_of_thousands_is_refused_and_a_trickle_is_not() -> None:
    with pytest.raises(InputError, match="a plan simulates 500 at most"):
        planned(asked(rate=200_000.0), [profile()])
    assert planned(asked(rate=1e-4), [profile()])["options"][0]["replicas"] == 1


def test_longer_requests_of_a_larger_simulation_are_refused() -> None:
    drawn = replace(traffic(80.0), output_tokens=Lengths(16, 0.5))
    few, many = (demand(drawn).longest(count, 0) for count in (200, fleet_requests(200, 2)))
    assert few < many
    with pytest.raises(InputError, match=f"have {many} tokens, and dense takes {few}"):
        planned(asked(demand=demand(drawn), requests=200, promised=SLO), [limited(context_length=few)])


def test_only_the_records_of_the_peak_are_kept() -> None:
    made = answers(asked(), option.options([profile()], {}))[0]
    assert made.fleet is not None and made.fleet.at_peak.found.records and not made.alone.found.records
    assert [each for each in made.world.trials.values() if each.found.records] == [made.fleet.at_peak]


def test_a_fleet_that_does_by_luck_is_told_and_not_preferred() -> None:
    made = planned(asked(), [profile(), profile("third", 1.3)], ["dense=1", "third=1"])
    lucky, sure = ({"name": name, "machines": 3, "price": 1, "cost": {"usd_per_month": usd}} for name, usd in USD)
    assert chosen([lucky | {"sure": {"holds": 0.5}}, sure | {"sure": {"holds": 0.95}}]) == "b"
    assert chosen([lucky | {"sure": {"holds": 0.5}}, sure | {"sure": {"holds": 0.6}}]) == "a"
    for each in made["options"]:
        told = [warning for warning in made["warnings"] if warning.startswith(f"{each['name']} keeps the promise in")]
        assert bool(told) == (each["sure"]["holds"] < 0.9)
        if told:
            high = each["sure"]["replicas"]["high"]
            assert told[0].endswith(f"of 3 worlds only; {high or 'more'} replicas do in all")
    assert any(each["sure"]["holds"] < 0.9 for each in made["options"])


USD = (("a", 100), ("b", 200))


def test_a_saving_is_told_only_where_all_have_a_price() -> None:
    made = planned(asked(), [profile("slow", 0.6), profile("sparse", 1.6), profile("third")], ["slow=1", "sparse=9"])
    assert "would do, too" in table(made) and "% less than" not in table(made)


def limited(**changed: int) -> Profile:
    made = profile()
    return replace(made, replica=replace(made.replica, limits=replace(LIMITS, **changed)))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ([], "give --profile FILE"),
        ([limited(kv_blocks=0)], "no room in its KV cache"),
        ([limited(kv_blocks=4)], "have 80 tokens, and dense takes 64"),
        ([limited(context_length=32)], "have 80 tokens, and dense takes 32"),
        ([profile(valid=False, failed=["psi"])], r"not valid \(psi\)"),
        ([profile(hull=hull.around([1, 2], [0, 512], [0, 6400]))], "sequences at a time, and 2 were measured"),
        ([profile(hull=hull.around([1, 16], [0, 8], [0, 6400]))], "prompt tokens in a step, and 8 were measured"),
        (
            [profile(hull=hull.around([1, 16], [0, 512], [0, 9]))],
            "attended to in a step, and 9 were measured",
        ),
    ],
)
def test_what_is_refused(made: list[Profile], why: str) -> None:
    with pytest.raises(InputError, match=why):
        planned(asked(), made)


def test_a_guess_is_told_in_the_first_line() -> None:
    small = profile(hull=hull.around([1, 2], [0, 512], [0, 6400]), source="estimate")
    said = table(planned(asked(extrapolate=True), [small])).splitlines()
    assert said[0] == "estimate, not measured: dense"
    assert said[1].startswith("extrapolated beyond what was measured: dense at")


def test_profiles_of_other_models_are_told() -> None:
    found = planned(asked(), [profile(), profile("other", model="n")])
    assert any("of different models, m, n, and nothing says" in warning for warning in found["warnings"])
    found = planned(asked(), [profile(), profile("pruned", model="n", quality_loss=0.05)])
    assert any("of different models, m, n, and a quality loss counts only" in each for each in found["warnings"])
    found = planned(asked(), [profile(), profile("pruned", quality_loss=0.05)])
    assert not any("of different models" in warning for warning in found["warnings"])


def test_profiles_that_contradict_each_other_are_told() -> None:
    impossible = [profile(sparse=False), profile("sparse", 3.0, sparse=True, weight_bits=16)]
    said = planned(asked(), impossible)["warnings"]
    assert [warning for warning in said if "dense and sparse contradict each other: fixed of 2:4" in warning]
    possible = [profile(sparse=False), profile("sparse", 1.6, sparse=True)]
    assert not [warning for warning in planned(asked(), possible)["warnings"] if "contradict" in warning]


@pytest.mark.parametrize("estimated", [0, 1])
def test_an_estimate_contradicts_no_measurement(estimated: int) -> None:
    both = [profile(sparse=False), profile("sparse", 3.0, sparse=True, weight_bits=16)]
    both[estimated] = replace(both[estimated], source="estimate")
    assert not [warning for warning in planned(asked(), both)["warnings"] if "contradict" in warning]


def test_the_function_is_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, page = tmp_path / "plan.json", tmp_path / "plan.html"
    file = tmp_path / "dense.json"
    file.write_text(json.dumps(profiles.document(profile(), {})))
    words = ["plan", "--profile", str(file), "--slo", SLO, "--rate", "80", "--prompt-tokens", "64"]
    words += ["--output-tokens", "16", "--price", "dense=2"]
    assert main([*words, "--out", str(kept), "--html", str(page)]) == 0
    printed, found = capsys.readouterr().out, json.loads(kept.read_text())
    assert printed == table(found) + "\n" and "twofour plan" in page.read_text()
    made = json.loads(json.dumps(bench.plan([profile()], traffic(80.0), SLO, price=["dense=2"])))
    assert {name: found[name] for name in made} == made
    assert main(["bench", "report", str(kept), "--html", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out == printed and (tmp_path / "again.html").read_text() == page.read_text()


def test_a_trace_is_planned_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, trace = tmp_path / "dense.json", tmp_path / "trace.csv"
    file.write_text(json.dumps(profiles.document(profile(), {})))
    rows = [f"{number / 20},64,16" for number in range(300)]
    trace.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows]))
    assert main(["plan", "--profile", str(file), "--slo", SLO, "--trace", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"]["peak"] == pytest.approx(20.0) and found["asked"]["load"]["trace"] == "trace.csv"
    assert main(["plan", "--profile", str(file), "--slo", SLO]) == 1
    assert "give --rate, or --trace FILE" in capsys.readouterr().err


def test_the_same_question_has_the_same_answer() -> None:
    first, again = (planned(asked(), [profile()]) for _ in range(2))
    assert first == again
