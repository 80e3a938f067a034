from dataclasses import replace
from pathlib import Path

import pytest

from twofour.bench.load import gates
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunks, Record, Request
from twofour.bench.load.workload import Limits, Schedule


def requests(n: int) -> list[Request]:
    return [Request(i, 0.0, "a", 10, 5) for i in range(n)]


def records(n: int) -> list[Record]:
    """Sent at once, and answered alike."""
    one = Record(0, 1.0, 1.001, 1.01, Chunks.of([(1.1, 1), (1.2, 4)]), 2.0, 10, 5, cached_tokens=0)
    return [replace(one, index=i) for i in range(n)]


def judged(
    got: list[Record],
    lags: tuple[float, ...] = (0.001,),
    pressure: float | None = 0.02,
    concurrency: int | None = None,
    hits: float | None = None,
) -> dict[str, Gate]:
    checked = gates.check(
        Schedule(requests(len(got)), concurrency, {}), got, lags=lags, pressure=pressure, prefix_hits=hits
    )
    return {gate.name: gate for gate in checked}


def failing(got: list[Record], **more: object) -> set[str]:
    return {gate.name for gate in gates.failed(list(judged(got, **more).values()))}  # type: ignore[arg-type]


def test_a_good_run_passes_every_gate() -> None:
    assert {gate.passed for gate in judged(records(200)).values()} == {True}
    assert failing(records(200)) == set()


def test_each_defect_fails_its_own_gate_and_no_other() -> None:
    good = records(200)
    late = [replace(r, sent_at=1.02) if r.index < 3 else r for r in good]
    short = [replace(r, output_tokens=4) if r.index < 2 else r for r in good]
    cached = [replace(r, cached_tokens=90) if r.index < 3 else r for r in good]
    broken = [replace(r, error="reset: x") if r.index < 3 else r for r in good]
    assert failing(late) == {"send_lag_p99"}
    assert failing(short) == {"output_length"}
    assert failing(cached) == {"prefix_cache"}
    assert failing(good, hits=0.02) == {"prefix_cache"}  # by the server's own counters
    assert judged(cached, hits=0.0)["prefix_cache"].value == pytest.approx(3 * 90 / 2000)  # the worse of both
    assert failing([replace(r, prompt_tokens=14) for r in good]) == {"prompt_length"}
    assert failing([replace(r, prompt_tokens=6) for r in good]) == {"prompt_length"}
    assert judged([replace(r, prompt_tokens=14) for r in good])["prompt_length"].value == pytest.approx(0.2)
    assert failing([replace(r, prompt_tokens=12) for r in good]) == set()  # its own tokens, such as a first one
    assert failing(broken) == {"errors"}
    assert failing([replace(r, error="cut off: the run was interrupted") if r.index < 3 else r for r in good]) == set()
    assert failing(good, lags=(0.001,) * 90 + (0.05,) * 10) == {"loop_lag_p99"}
    assert failing(good, pressure=0.11) == {"cpu_pressure"}


def test_how_late_a_client_may_be_follows_from_the_time_to_the_first_token() -> None:
    def limits(ttft_s: float) -> tuple[float, float]:
        found = judged([replace(r, chunks=Chunks.of([(1.001 + ttft_s, 5)])) for r in records(3)])
        return found["send_lag_p99"].limit, found["loop_lag_p99"].limit

    assert limits(0.0093) == (0.001, 0.001)
    assert limits(0.1) == pytest.approx((0.005, 0.005))
    assert limits(1.0) == pytest.approx((0.05, 0.01))
    assert [gate.limit for gate in judged([Record(0, 1.0, error="connect: refused")]).values()][1:3] == [0.001, 0.001]


def test_only_an_open_loop_has_a_rate_to_fall_behind() -> None:
    names = set(judged(records(20)))
    assert names - set(judged(records(20), concurrency=4)) == {"rate_shortfall"}
    assert "latency_drift" in names


def test_time_that_the_server_took_to_connect_is_not_the_clients() -> None:
    far = [replace(r, sent_at=1.2, connecting_at=1.0002, connected_at=1.1998) for r in records(200)]
    assert judged(far)["send_lag_p99"].value == pytest.approx(0.0004)
    slow_to_begin = [replace(r, sent_at=1.2, connecting_at=1.1, connected_at=1.15) for r in records(200)]
    assert judged(slow_to_begin)["send_lag_p99"].value == pytest.approx(0.15)


def test_a_request_that_was_sent_twice_says_nothing_about_lag() -> None:
    twice = [replace(r, sent_at=1.5, reconnected=True) for r in records(3)]
    assert judged(twice)["send_lag_p99"].value is None


def test_at_the_limit_a_gate_still_passes() -> None:
    short = [replace(r, output_tokens=6) if r.index == 0 else r for r in records(200)]
    gate = judged(short)["output_length"]
    assert (gate.value, gate.limit, gate.passed) == (0.005, 0.005, True)
    assert judged(records(1), pressure=0.10)["cpu_pressure"].passed


def test_what_cannot_be_measured_neither_passes_nor_fails() -> None:
    silent = [replace(r, output_tokens=None, prompt_tokens=None, cached_tokens=None) for r in records(5)]
    got = judged(silent, lags=(), pressure=None)
    unknown = {name for name, gate in got.items() if gate.passed is None}
    too_few = {"rate_shortfall", "latency_drift"}
    assert unknown == {"loop_lag_p99", "cpu_pressure", "prompt_length", "output_length", "prefix_cache"} | too_few
    assert failing(silent, lags=(), pressure=None) == set()


def test_lengths_of_failed_requests_do_not_count() -> None:
    cut = [replace(r, output_tokens=1, error="reset: x") for r in records(5)]
    assert judged(cut)["output_length"].value is None


def test_pressure_is_the_share_of_time_since_the_start(tmp_path: Path) -> None:
    source = tmp_path / "cpu"
    line = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    source.write_text(line.format(2_000_000))
    assert gates.stalled_s(source) == 2.0
    pressure = gates.Pressure(source)
    assert pressure.share() == 0.0
    source.write_text(line.format(2_000_000 + 3_600_000_000))  # an hour of waiting: more than has passed
    share = pressure.share()
    assert share is not None and share > 1


@pytest.mark.parametrize("text", [None, "", "nonsense"])
def test_a_kernel_without_pressure_counters_is_unknown(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpu").write_text(text)
    assert gates.Pressure(tmp_path / "cpu").share() is None


def test_what_prompts_are_meant_to_share_a_prefix_cache_may_find() -> None:
    alike = [replace(request, prompt="a b c d e f", family="one") for request in requests(4)]
    got = [replace(record, cached_tokens=7) for record in records(4)]
    gate = {g.name: g for g in gates.check(Schedule(alike, 1, {}), got, lags=[], pressure=None)}["prefix_cache"]
    assert gate.limit == pytest.approx(0.01 + 3 / 4)  # all of all prompts but the first
    assert gate.value == pytest.approx(0.7) and gate.passed
    some = {g.name: g for g in gates.check(Schedule(alike, 1, {}), got[:2], lags=[], pressure=None)}["prefix_cache"]
    assert some.limit == pytest.approx(0.01 + 1 / 2) and not some.passed  # of those that were sent


def test_requests_that_were_held_back_are_counted_and_no_lag_of_the_client() -> None:
    got = [replace(record, held=record.index < 2, sent_at=1.5 if record.index < 2 else 1.001) for record in records(20)]
    asked = Schedule(requests(20), None, {}, Limits(max_in_flight=3))
    found = {gate.name: gate for gate in gates.check(asked, got, lags=[0.0], pressure=0.0)}
    assert found["held_back"].value == pytest.approx(0.1) and not found["held_back"].passed
    assert found["send_lag_p99"].passed
    assert "held_back" not in judged(records(20))


def test_answers_may_become_slower_where_the_load_changes_by_itself() -> None:
    def names(concurrency: int | None, **made_of: object) -> set[str]:
        asked = Schedule(requests(20), concurrency, made_of)
        return {gate.name for gate in gates.check(asked, records(20), lags=[], pressure=None)}

    assert "latency_drift" in names(None, rate=1.0) & names(2, trace="a.csv") & names(2)
    assert "latency_drift" not in names(None, rate=1.0, rate_to=2.0) | names(None, trace="a.csv")


def test_prompts_of_unknown_length_are_not_judged() -> None:
    unknown = [replace(request, prompt_tokens=None) for request in requests(20)]
    found = {g.name: g for g in gates.check(Schedule(unknown, 1, {}), records(20), lags=[], pressure=None)}
    assert found["prompt_length"].passed is None
