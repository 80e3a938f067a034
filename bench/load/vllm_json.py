"""A run in the flat JSON of `vllm bench serve`, which other tools read.

The names and the definitions are vLLM's: every request counts, ramp and drain too; `tpot` is over N - 1
tokens, `itl` is pooled over chunks and not over tokens. Percentiles are given however few values there are, as tools
expect numbers; `too_few_values_for` names those that say nothing. This key, `valid` and `failed_gates` are our own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofour.bench.load import gaps, gates, metrics
from twofour.bench.load.metrics import Summary
from twofour.bench.load.records import Record
from twofour.bench.load.run import SCHEMA_VERSION, Run

_PERCENTILES = (50, 95, 99)
_NAMES = {"ttft": "ttft", "tpot": "tpot_vllm", "itl": "itl_gap", "e2el": "e2e"}


def flat(run: Run, with_records: bool) -> dict[str, Any]:
    window = metrics.whole_window(run.records)
    summary = metrics.summarise(run.records, run.started_at, window)
    good = [record for record in run.records if record.error is None]
    result = _totals(run, summary) | {"too_few_values_for": []}
    known = metrics.quantities(good) | {"itl_gap": gaps.pooled(good)[0]}
    for name, ours in _NAMES.items():
        result |= _milliseconds(name, known[ours])
        enough = getattr(summary, ours)
        result["too_few_values_for"] += [f"p{p}_{name}_ms" for p in _PERCENTILES if getattr(enough, f"p{p}") is None]
    return result | _lists(run) if with_records else result


def _totals(run: Run, summary: Summary) -> dict[str, Any]:
    schedule, rate = run.schedule, run.schedule.made_of.get("rate")
    return {
        "date": run.started.strftime("%Y%m%d-%H%M%S"),
        "backend": "openai",
        "model_id": run.service.model,
        "num_prompts": len(schedule.requests),
        "request_rate": "inf" if rate is None else rate,
        "max_concurrency": schedule.concurrency,
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.prompt_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.requests_per_s,
        "request_goodput": None,
        "output_throughput": summary.output_tokens_per_s,
        "total_token_throughput": summary.total_tokens_per_s,
        "schema_version": SCHEMA_VERSION,
        "valid": run.valid,
        "cut_off": run.cut_off,
        "failed_gates": [gate.name for gate in gates.failed(run.gates)],
    }


def _milliseconds(name: str, values: Sequence[float] | gaps.Times) -> dict[str, float | None]:
    """Null where nothing was measured."""
    figures = (
        [np.mean(values), np.median(values), np.std(values), *np.percentile(values, _PERCENTILES)]
        if len(values)
        else []
    )
    keys = ("mean", "median", "std", *(f"p{p}" for p in _PERCENTILES))
    known = {key: float(figure) * 1000 for key, figure in zip(keys, figures, strict=False)}
    return {f"{key}_{name}_ms": known.get(key) for key in keys}


def _lists(run: Run) -> dict[str, Any]:
    def good(record: Record) -> bool:
        return record.error is None

    records = run.records
    return {
        "input_lens": [record.prompt_tokens or 0 for record in records],
        "output_lens": [record.output_tokens or 0 for record in records],
        "ttfts": [metrics.first_token(r) - metrics.sent(r) if good(r) else 0.0 for r in records],
        "itls": [gaps.of(r).tolist() if good(r) else [] for r in records],
        "latencies": [metrics.last_token(r) - metrics.sent(r) if good(r) else 0.0 for r in records],
        "start_times": [metrics.sent(record) for record in records],
        "errors": [record.error or "" for record in records],
    }
