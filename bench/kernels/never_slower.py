"""Is what is served never slower than torch dense? The verdict, from the cells and sums of a document.

A ratio is torch's time over ours, so more is better. A cell fails where even the upper end of its 95 % interval is
below the limit: noise alone seldom fails it. A model fails where its ratio, weighted over a histogram of the tokens
in a call, is below 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from twofour.bench.stats import Ratio, paired_ratio
from twofour.serve.kernels.race import DECODE_TOKENS, TRAFFIC

BASELINE, SERVED = "torch bf16", "served"
DECODE_LIMIT, PREFILL_LIMIT, WEIGHTED_LIMIT = 0.98, 0.95, 1.0


def never_slower(cells: Sequence[Mapping[str, Any]], sums: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """`passed` is None where nothing could be judged."""
    judged = [cell for cell in cells if {BASELINE, SERVED} <= cell["contenders"].keys()]
    failures = [_failure(cell) for cell in judged if _is_slower(cell)]
    weighted = [_weighted(model, sums, seed) for model in dict.fromkeys(each["model"] for each in sums)]
    fails = bool(failures) or any(each["passed"] is False for each in weighted)
    return {
        "ratio": name(BASELINE, SERVED),
        "limits": {"decode": DECODE_LIMIT, "prefill": PREFILL_LIMIT, "weighted": WEIGHTED_LIMIT},
        "decode_tokens": DECODE_TOKENS,
        "histogram": {str(tokens): share for tokens, share in TRAFFIC.items()},
        "judged": len(judged),
        "failures": failures,
        "weighted": weighted,
        "passed": not fails if judged else None,
    }


def name(slower: str, faster: str) -> str:
    """The name of a ratio of times, the speed-up of the second over the first."""
    return f"{slower} / {faster}"


def limit(tokens: int) -> float:
    return DECODE_LIMIT if tokens <= DECODE_TOKENS else PREFILL_LIMIT


def weighted_ratio(
    baseline: Mapping[int, Sequence[float]], served: Mapping[int, Sequence[float]], seed: int
) -> tuple[Ratio, float] | None:
    """Both: tokens -> seconds of each round. The ratio of the times of a mean call, and the share of the histogram
    that was measured; None: none of it."""
    share = sum(TRAFFIC[tokens] for tokens in served if tokens in TRAFFIC)
    if not share:
        return None
    pairs = list(zip(_mean_call(served), _mean_call(baseline), strict=True))
    return paired_ratio(pairs, seed), share


def _mean_call(seconds: Mapping[int, Sequence[float]]) -> list[float]:
    """The time of a mean call in each round, up to a factor that the ratio does not depend on."""
    weighted = [[TRAFFIC[tokens] * s for s in rounds] for tokens, rounds in seconds.items() if tokens in TRAFFIC]
    return [sum(each) for each in zip(*weighted, strict=True)]


def _is_slower(cell: Mapping[str, Any]) -> bool:
    return bool(cell["ratios"][name(BASELINE, SERVED)]["high"] < limit(cell["tokens"]))


def _failure(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: cell[key] for key in ("part", "rows", "columns", "tokens")},
        "kernel": cell["contenders"][SERVED]["kernel"],
        "ratio": cell["ratios"][name(BASELINE, SERVED)],
        "limit": limit(cell["tokens"]),
    }


def _weighted(model: str, sums: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    own = [each for each in sums if each["model"] == model and {BASELINE, SERVED} <= each["contenders"].keys()]
    baseline, served = (
        {each["tokens"]: each["contenders"][who]["seconds"] for each in own} for who in (BASELINE, SERVED)
    )
    found = weighted_ratio(baseline, served, seed)
    if found is None:
        return {"model": model, "ratio": None, "share_of_calls": 0.0, "passed": None}
    ratio, share = found
    passed = ratio.point >= WEIGHTED_LIMIT
    return {"model": model, "ratio": asdict(ratio), "share_of_calls": share, "passed": passed}
