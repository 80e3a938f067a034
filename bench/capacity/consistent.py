"""Can two profiles of one model, dense and 2:4, both be right? What 2:4 saves has limits that no kernel can pass.

A 2:4 linear keeps half its values and says which, in two bits each. Of 16-bit values that is 0.5625 of the bytes, of
8-bit values 0.625; and half of the multiplications. `fixed_s` is weights that are read, `prefill_s` is multiplications:
they cannot fall below these shares. The cache and what each sequence costs beside the linears are the same for both.

A fit tells terms apart only where they matter: one that is little of a step, or 0 in either fit, is not judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.step_model import StepModel

LEAST_WORK = 0.5
_BITS = 16  # of a value of dense, where nothing is said
_FEWEST_BITS = 8  # of a value of 2:4: what must be possible, where nothing is said
_JUDGED = 0.05  # of a step of dense: what is less is not judged
_CHANCE = 0.005  # at either end, as several terms are judged
_SAME = 1.25  # a factor between two measurements of the same thing that is still no contradiction


@dataclass(frozen=True)
class Finding:
    """ratio: of 2:4 over dense; low, high: 99 in 100 draws of the two fits lie within. None: too little to judge."""

    term: str
    ratio: float | None
    low: float | None
    high: float | None
    least: float
    most: float | None  # None: nothing forbids it to be slower
    error: str | None  # what is impossible


def findings(dense: Profile, sparse: Profile) -> list[Finding]:
    """Only what is beyond chance is called impossible: the whole of its interval."""
    return [
        _finding("fixed", dense, sparse, lambda steps: steps.fixed_s, _least_bytes(dense, sparse), None),
        _finding("prefill", dense, sparse, lambda steps: steps.prefill_s, LEAST_WORK, None),
        _finding("decode", dense, sparse, lambda steps: steps.decode_s, LEAST_WORK, None),
        _finding("kv", dense, sparse, lambda steps: steps.kv_s, 1 / _SAME, _SAME),
        _finding("pair", dense, sparse, lambda steps: steps.pair_s, 1 / _SAME, _SAME),
    ]


def errors(dense: Profile, sparse: Profile) -> list[str]:
    return [found.error for found in findings(dense, sparse) if found.error]


def _least_bytes(dense: Profile, sparse: Profile) -> float:
    bits = sparse.weight_bits or _FEWEST_BITS
    return bits / (dense.weight_bits or _BITS) * (0.5 + 1 / bits)


def _finding(
    term: str, dense: Profile, sparse: Profile, of: Callable[[StepModel], float], least: float, most: float | None
) -> Finding:
    before, after = of(dense.replica.steps), of(sparse.replica.steps)
    if min(before, after) <= 0 or _share(term, dense) < _JUDGED:
        return Finding(term, None, None, None, least, most, None)
    firsts, seconds = ([of(steps) for steps in each.draws or [each.replica.steps]] for each in (dense, sparse))
    ratios = [second / first for first, second in product(firsts, seconds) if first > 0]
    if not ratios:
        return Finding(term, None, None, None, least, most, None)
    low, high = map(float, np.quantile(ratios, (_CHANCE, 1 - _CHANCE)))
    return Finding(term, after / before, low, high, least, most, _error(term, low, high, least, most))


def _share(term: str, of: Profile) -> float:
    """Of the time of a step with half of the most that was measured: one that reads prompts, or one that decodes."""
    steps, (decodes, prefill, kv) = of.replica.steps, (most / 2 for most in of.hull.largest)
    reads = {"fixed": steps.fixed_s, "prefill": steps.prefill_s * prefill, "pair": steps.pair_s * prefill**2 / 2}
    decoding = {"fixed": steps.fixed_s, "decode": steps.decode_s * decodes, "kv": steps.kv_s * kv}
    return max(parts.get(term, 0.0) / (sum(parts.values()) or 1.0) for parts in (reads, decoding))


def _error(term: str, low: float, high: float, least: float, most: float | None) -> str | None:
    where = f"{term} of 2:4 is {low:.2f} to {high:.2f} times that of dense"
    if high < least:
        return f"{where}, but cannot be below {least:.4g}: one of the two was measured wrongly; measure both in turns"
    if most is not None and low > most:
        return f"{where}, but 2:4 does not change it: one of the two was measured wrongly; measure both in turns"
    return None
