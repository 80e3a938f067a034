"""That these keys are right in a cache, test_replica shows. Here: what is said by name is as if it were written out."""

from collections.abc import Sequence

import pytest

from twofour.bench.capacity.contents import shared_keys
from twofour.bench.load.records import Message, Request
from twofour.bench.load.workload import Lengths
from twofour.bench.traffic.lengths import Pause
from twofour.bench.traffic.traces import BLOCK, Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic

RATE = Rate(2.0)
LENGTHS = Lengths(60, 0.5)
ROWS = [
    Row(float(i), 2 * BLOCK + 40 * i, 8, blocks) for i, blocks in enumerate([(7, 8, 9), (7, 8, 5), (7, 3, 9), (1,)])
]


def common(requests: Sequence[Request], size: int) -> list[list[int]]:
    """How many blocks any two begin with in common."""
    keys = shared_keys(requests, size)
    each = [keys.get(request.index, []) for request in requests]
    return [[sum(a == b for a, b in zip(one, other, strict=False)) for other in each] for one in each]


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(requests=20, rate=RATE, prompt_tokens=LENGTHS, shared_prefix=0.6, prefixes=3),
        Traffic(requests=None, trace=Trace("t", ROWS, 0)),
        Traffic(requests=20, rate=RATE, prompt_tokens=LENGTHS, turns=Lengths(3), think=Pause(1.0)),
    ],
    ids=["prefixes", "trace", "sessions"],
)
def test_a_sketch_shares_what_the_texts_share(traffic: Traffic) -> None:
    texts, sketch = traffic.schedule().requests, traffic.sketch().requests
    assert [r.prompt for r in sketch] == [""] * len(texts)
    shared = common(sketch, 4)
    assert sum(map(sum, shared)) > sum(shared[i][i] for i in range(len(shared)))
    for i, row in enumerate(common(texts, 4)):
        assert row[:i] == pytest.approx(shared[i][:i], abs=1)  # one more word may be the same by chance


def test_texts_of_one_family_share_as_far_as_their_words_are_the_same() -> None:
    system = Message("system", " ".join(["same"] * 8))
    requests = [
        Request(i, 0.0, f"{name} other words of all", 17, 4, history=(system,), family="all")
        for i, name in enumerate(["one", "two"])
    ]
    assert common(requests, 4)[0][1] == 3  # 4 words of the nonce and 8 of the system prompt
    alone = [Request(0, 0.0, "a", 17, 4, family="all"), Request(1, 0.0, "a", 17, 4)]
    assert common(alone, 4)[0] == [0, 0]


def test_a_later_turn_begins_with_the_prompt_before_it_and_not_with_the_answer() -> None:
    first, second, third = (
        Request(0, 0.0, "", 10, 6, family="0"),
        Request(1, 0.0, "", 20, 6, after=0, family="0"),
        Request(2, 0.0, "", 30, 6, after=1, family="0"),
    )
    keys = shared_keys([first, second, third], 4)
    assert [len(keys.get(i, [])) for i in range(3)] == [0, 2, 5]
    assert keys[2][:2] == keys[1]
