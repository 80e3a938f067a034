from dataclasses import replace

import pytest

from twofour.bench.capacity import hull
from twofour.bench.capacity.consistent import errors, findings
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.step_model import StepModel

LAW = StepModel(10e-3, 3e-5, 6e-5, 6e-8, 2e-9)
LIMITS = EngineLimits(16, 2048, 100, 16, 1024)


def arm(steps: StepModel, bits: int | None = 16, scatter: float = 0.0) -> Profile:
    draws = [replace(steps, fixed_s=steps.fixed_s * (1 + scatter * (-1) ** i)) for i in range(10)]
    return Profile(
        "arm",
        "demo",
        Replica(LIMITS, steps, Around(0.0, 0.0)),
        hull.around([32], [4096], [32_000]),
        draws=draws if scatter else (),
        weight_bits=bits,
    )


@pytest.mark.parametrize(
    ("sparse", "bits", "wrong"),
    [
        (replace(LAW, fixed_s=5.7e-3, prefill_s=1.6e-5), 16, []),
        (replace(LAW, fixed_s=5.5e-3), 16, ["fixed"]),
        (replace(LAW, fixed_s=6.0e-3), 8, ["fixed"]),
        (replace(LAW, fixed_s=6.3e-3), 8, []),
        (replace(LAW, prefill_s=1.4e-5), 16, ["prefill"]),
        (replace(LAW, fixed_s=12e-3, prefill_s=5e-5), 16, []),  # slower may be
        (replace(LAW, kv_s=9e-8, pair_s=1e-9), 16, ["kv", "pair"]),
    ],
)
def test_what_cannot_be_is_said(sparse: StepModel, bits: int, wrong: list[str]) -> None:
    found = [each.term for each in findings(arm(LAW, bits), arm(sparse, bits)) if each.error]
    assert found == wrong
    assert all("measured wrongly" in said for said in errors(arm(LAW, bits), arm(sparse, bits)))


@pytest.mark.parametrize(("fixed_s", "wrong"), [(3.2e-3, []), (3.0e-3, ["fixed"])])
def test_where_2_4_does_not_say_its_bits_the_fewest_are_possible(fixed_s: float, wrong: list[str]) -> None:
    sparse = arm(replace(LAW, fixed_s=fixed_s), None)
    assert [each.term for each in findings(arm(LAW), sparse) if each.error] == wrong
    assert errors(arm(LAW, 8), arm(replace(LAW, fixed_s=6.0e-3), None))


def test_what_is_little_of_a_step_is_not_judged() -> None:
    for term in ("prefill_s", "decode_s", "kv_s", "pair_s"):
        little = replace(LAW, **{term: getattr(LAW, term) / 100})
        assert not errors(arm(little), arm(replace(little, **{term: 0.1 * getattr(little, term)})))
        assert errors(arm(LAW), arm(replace(LAW, **{term: 0.1 * getattr(LAW, term)})))


def test_what_a_fit_does_not_tell_apart_is_not_judged() -> None:
    assert not errors(arm(LAW), arm(replace(LAW, decode_s=1.2e-4, kv_s=0.0)))
    none = replace(arm(LAW), draws=[replace(LAW, fixed_s=0.0)])
    assert not errors(none, arm(replace(LAW, fixed_s=1e-3)))


def test_what_one_draw_in_fifty_allows_is_not_impossible() -> None:
    sparse = arm(replace(LAW, fixed_s=5.0e-3))
    draws = [replace(LAW, fixed_s=5.8e-3 if i % 50 == 0 else 5.0e-3) for i in range(100)]
    assert errors(arm(LAW), sparse)
    assert not errors(arm(LAW), replace(sparse, draws=draws))


def test_what_may_be_chance_is_not_called_impossible() -> None:
    faster = replace(LAW, fixed_s=5.5e-3)
    assert errors(arm(LAW), arm(faster, scatter=0.01))
    assert not errors(arm(LAW), arm(faster, scatter=0.05))


def test_fewer_bits_are_no_doing_of_2_4() -> None:
    assert not errors(arm(LAW, 16), arm(replace(LAW, fixed_s=3.2e-3), 8))
    assert errors(arm(LAW, 16), arm(replace(LAW, fixed_s=2.5e-3), 8))


def test_what_dense_does_not_have_is_not_compared() -> None:
    first = findings(arm(replace(LAW, fixed_s=0.0)), arm(LAW))[0]
    assert (first.term, first.ratio, first.error) == ("fixed", None, None)
