"""A run as text for a person: latencies in milliseconds, throughput, gates, verdict."""

from collections.abc import Mapping
from typing import Any

from twofour.bench.load import told
from twofour.bench.load.gates import Gate, quantity
from twofour.bench.load.metrics import Summary, error_kind
from twofour.bench.load.run import Run
from twofour.bench.load.stored import read
from twofour.bench.load.wire import shown
from twofour.bench.stats import FEWEST, Distribution, named

ROWS = {
    "ttft": "time to first token",
    "ttft_sched": "  from the scheduled time",
    "first_byte": "time to headers",
    "itl_gap": "gap between chunks",
    "itl_tok": "gap per token",
    "tpot": "time per output token",
    "tpot_vllm": "  as vLLM counts (N - 1)",
    "tpot_incl": "  with the first (GuideLLM)",
    "e2e": "end to end",
}
_PERCENTILES = [f"p{p}" for p in FEWEST]


def table(done: Run) -> str:
    load, summary = done.schedule.made_of, done.summary
    lines = [
        f"{done.service.model} at {shown(done.service.url)}: {asked(done)}",
        f"{summary.completed} completed, {summary.failed} failed, {summary.measured} measured {_window(summary)}",
        *_errors(done),
        f"prompts {_each(summary.prompt_tokens, summary)} and answers {_each(summary.output_tokens, summary)} tokens "
        "each by the server's count",
        *_on_the_wire(summary),
        "",
        f"{'ms':28}{'n':>7}{'real n':>8}" + "".join(f"{name:>9}" for name in ("mean", "min", *_PERCENTILES, "max")),
        *(_row(label, getattr(summary, name)) for name, label in ROWS.items()),
        "",
        f"throughput: {_number(summary.output_tokens_per_s)} output tokens/s, "
        f"{_number(summary.total_tokens_per_s)} tokens/s, {_number(summary.requests_per_s)} requests/s"
        f"{_offered(load['rate'])}",
        *_told(done),
        "real n: how many independent values the gaps amount to, as those of one request are alike",
        f"tokens counted {summary.token_counts.replace('none', 'not at all (no usage from the server)')}",
        "",
        *(_verdict(gate) for gate in done.gates),
        *(["  CUT OFF       before the end: run it again"] if done.cut_off else []),
        "VALID" if done.valid else "INVALID: do not quote these numbers",
    ]
    return "\n".join(lines)


def _told(done: Run) -> list[str]:
    """The server's own figures beside the client's, memory and energy: whatever is known."""
    rows = told.beside(done)
    head = [f"{'all requests, ramp and drain too':40}{'by the server':>16}{'by the client':>16}"] if rows else []
    held = told.memory(done.server.held) if done.server else []
    return [
        *head,
        *(f"  {row.what:38}{row.by_server:>16}{row.by_client:>16}" for row in rows),
        *(f"memory: {what} {said}" for what, said in held),
        *(f"energy of {what}: {said}" for what, said in told.energy(done)),
    ]


def of_document(document: Mapping[str, Any]) -> str:
    """The table of a run that was kept."""
    return table(read(document))


def asked(done: Run) -> str:
    """The load in words."""
    load = done.schedule.made_of
    pace = f"{load['concurrency']} at a time" if load["concurrency"] else f"{load['rate']:g} requests/s, Poisson"
    return (
        f"{load['requests']} requests, {pace}, prompts {load['prompt_tokens']}, outputs {load['output_tokens']} "
        f"tokens, seed {load['seed']}, nonce {done.nonce}"
    )


def _errors(done: Run) -> list[str]:
    """Every kind of error: how often, and the first of its kind in full."""
    examples = {error_kind(record): record.error for record in reversed(done.records) if record.error}
    return [f"  {count} x {examples[name]}" for name, count in done.summary.errors.items()]


def _window(summary: Summary) -> str:
    """Which part of the run counts."""
    if summary.window_s is None:
        return "after the ramp"
    return f"from {summary.window_s[0]:.1f} to {summary.window_s[1]:.1f} s, without ramp and drain"


def _each(tokens: int | None, summary: Summary) -> str:
    return "of unknown" if tokens is None else f"of {tokens / summary.completed:.1f}"


def _on_the_wire(summary: Summary) -> list[str]:
    """What the network did to the figures, where it did anything."""
    said = []
    if summary.coalesced_reads:
        said.append(f"{summary.coalesced_reads:.1%} of the reads brought several chunks: gaps are blurred")
    if summary.reconnects:
        said.append(f"{summary.reconnects} requests were sent again, as the server had closed their connection")
    return said


def _offered(rate: float | None) -> str:
    return f" of {rate:g} offered" if rate else ""


def _row(label: str, values: Distribution) -> str:
    cells = [_milliseconds(values.mean), _milliseconds(values.min)]
    for p, fewest in FEWEST.items():
        percentile = getattr(values, named(p))
        cells.append(f"n < {fewest}" if percentile is None else _milliseconds(percentile))
    cells.append(_milliseconds(values.max))
    return f"{label:28}{values.n:>7}{values.independent:>8}" + "".join(f"{cell:>9}" for cell in cells)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _verdict(gate: Gate) -> str:
    if gate.value is None:
        return f"  not measured  {gate.name}"
    value, limit = (quantity(number, gate.unit) for number in (gate.value, gate.limit))
    if gate.passed:
        return f"  passed        {gate.name}: {value}, at most {limit}"
    return f"  FAILED        {gate.name}: {value}, at most {limit}; {gate.remedy}"
