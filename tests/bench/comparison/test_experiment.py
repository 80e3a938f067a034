from dataclasses import replace
from typing import Any

import pytest

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.report.arms import ARMS, arm_label
from twofour.prune.errors import InputError

CLOSED = Experiment()


def test_dense_is_called_the_best_only_beside_torchs() -> None:
    assert [arm_label(arm, ARMS) for arm in ARMS] == ["torch dense", "best dense", "2:4"]
    assert arm_label("dense", ("dense", "sparse")) == "dense"


def test_all_arms_get_one_schedule_and_each_round_another() -> None:
    rounds = [CLOSED.schedule(round_) for round_ in range(4)]
    assert rounds[1] == CLOSED.schedule(1)
    assert len({each.requests[0].prompt for each in rounds}) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": 0}, "0 rounds"),
        ({"rate": 2.0}, "concurrency or a rate"),
        ({"concurrency": None}, "concurrency or a rate"),
        ({"concurrency": 0}, "at least 1"),
    ],
)
def test_impossible_experiments(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(CLOSED, **wrong)
