import heapq
import random

import pytest

from twofour.bench.load.decode import Exchange
from twofour.bench.load.watch import LOOK_S, Level, Seen, Watch, over_saturated
from twofour.prune.progress import Step, silent


def queue(
    load: float, seconds: float, seed: int, servers: int = 8, service_s: float = 1.0
) -> list[tuple[float, float]]:
    """When each request of a simulated server came and went: so many at a time, at this share of what it can do."""
    draw, free, now, spans = random.Random(seed), [0.0] * servers, 0.0, []
    while now < seconds:
        now += draw.expovariate(load * servers / service_s)
        ends = max(now, heapq.heappop(free)) + draw.lognormvariate(-0.045, 0.3) * service_s
        heapq.heappush(free, ends)
        spans.append((now, ends))
    return spans


def stopped_at(spans: list[tuple[float, float]], seconds: float) -> float | None:
    """When the watch ends this load, by a clock of its own."""
    watch, seen, now = Watch(len(spans), None, True, silent), Seen(), 0.0
    events = sorted(
        [(came, 0, i) for i, (came, _) in enumerate(spans)] + [(went, 1, i) for i, (_, went) in enumerate(spans)]
    )
    exchanges = [Exchange(i, status=200) for i in range(len(spans))]
    watch.look(seen, 0.0)
    for at, ends, index in events:
        while now + LOOK_S * 1.001 < min(at, seconds):
            now += LOOK_S * 1.001
            if watch.look(seen, now):
                return now
        (seen.end if ends else seen.begin)(exchanges[index])
    return None


@pytest.mark.parametrize("servers", [1, 8, 32])
def test_a_server_that_falls_behind_is_noticed(servers: int) -> None:
    for seed in range(8):
        assert stopped_at(queue(1.3, 90.0, seed, servers, servers / 8), 90.0)


@pytest.mark.parametrize("servers", [1, 8, 32])
def test_a_server_that_keeps_up_is_left_alone(servers: int) -> None:
    for seed in range(8):
        assert stopped_at(queue(0.8, 90.0, seed, servers, servers / 8), 90.0) is None


def test_a_load_that_fills_up_is_not_over_saturated() -> None:
    assert stopped_at(queue(0.5, 90.0, 1, servers=128, service_s=20.0), 90.0) is None


def test_nothing_is_ended_unless_that_was_asked_for() -> None:
    growing, watch = Seen(), Watch(1000, None, False, silent)
    for index in range(1000):
        growing.begin(Exchange(index))
        assert not watch.look(growing, index * LOOK_S)


def test_growth_is_more_than_chance() -> None:
    def levels(*quarters: int, ended: int) -> list[Level]:
        return [
            Level(level, round(ended * i / 100))
            for i, level in enumerate(level for q in quarters for level in [q] * 25)
        ]

    assert over_saturated(levels(1, 5, 10, 16, ended=200))  # 11 more, and a hundred ended since
    assert not over_saturated(levels(1, 5, 10, 14, ended=200))
    assert not over_saturated(levels(1, 5, 10, 16, ended=200)[:79])


def test_a_line_each_second() -> None:
    told: list[Step] = []
    watch, seen, exchanges = Watch(4, None, False, told.append), Seen(), [Exchange(i, status=200) for i in range(4)]
    watch.look(seen, 100.0)
    for exchange in exchanges[:3]:
        seen.begin(exchange)
        exchange.reads += [(0.0, b"")] * 30
    seen.end(exchanges[0])
    exchanges[1].status = 503
    seen.end(exchanges[1])
    for now in (100.5, 100.9, 101.5, 102.0, 103.5):
        watch.look(seen, now)
        if now == 101.5:
            exchanges[2].reads += [(0.0, b"")] * 8
    watch.last(seen)
    lines = [(step.done, step.total, round(step.elapsed_s, 1), step.detail) for step in told[:-1]]
    assert lines == [
        (2, 4, 1.5, "60 tokens/s, 1 in flight, 1 failed"),
        (2, 4, 3.5, "4 tokens/s, 1 in flight, 1 failed"),
    ]
    assert (told[-1].done, told[-1].detail) == (2, "")


def test_where_time_ends_the_load_it_is_what_counts() -> None:
    told: list[Step] = []
    watch = Watch(20_000, 10.0, False, told.append)
    for now in (5.0, 8.0, 18.0):
        watch.look(Seen(), now)
    watch.last(Seen())
    assert [(step.stage, step.done, step.total) for step in told] == [
        ("load", 3, 10),
        ("load", 10, 10),
        ("load", 10, 10),
    ]


def test_a_line_counts_the_pieces_once() -> None:
    asked = list[int]()

    class Counted(Seen):
        @property
        def pieces(self) -> int:
            asked.append(1)
            return 50 * len(asked)

    lines = list[Step]()
    watch = Watch(9, None, False, lines.append)
    for now in (1.0, 2.0, 3.0):
        watch.look(Counted(), now)
    assert len(asked) == len(lines) == 2 and all(line.detail.startswith("50 tokens/s") for line in lines)
