"""A run as text for a person: latencies in milliseconds, throughput, gates, verdict."""

from collections.abc import Mapping
from typing import Any

from twofour.bench.load import told
from twofour.bench.load.gates import Gate, quantity
from twofour.bench.load.metrics import Summary, error_kind
from twofour.bench.load.run import Run
from twofour.bench.load.slo import Attainment, Kept
from twofour.bench.load.stored import read
from twofour.bench.load.wire import shown
from twofour.bench.load.workload import Schedule
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
    summary = done.summary
    lines = [
        f"{done.service.model} at {shown(done.service.url)}{_form(done)}: {asked(done.schedule)}, nonce {done.nonce}",
        f"{summary.completed} completed, {summary.failed} failed, {summary.measured} measured {_window(summary)}",
        *_errors(done),
        f"prompts {_each(summary.prompt_tokens, summary)} and answers {_each(summary.output_tokens, summary)} tokens "
        "each by the server's count",
        *_kinds(summary),
        *_on_the_wire(summary),
        "",
        f"{'ms':28}{'n':>7}{'real n':>8}" + "".join(f"{name:>9}" for name in ("mean", "min", *_PERCENTILES, "max")),
        *(_row(label, getattr(summary, name)) for name, label in ROWS.items()),
        "",
        f"throughput: {_number(summary.output_tokens_per_s)} output tokens/s, "
        f"{_number(summary.total_tokens_per_s)} tokens/s, {_number(summary.requests_per_s)} requests/s"
        f"{_offered(done.schedule)}",
        *(promised(done.slo) if done.slo else []),
        *_told(done),
        "real n: how many independent values the gaps amount to, as those of one request are alike",
        f"tokens counted {summary.token_counts.replace('none', 'not at all (no usage from the server)')}",
        "",
        *(_verdict(gate) for gate in done.gates),
        *_ending(done),
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


def asked(schedule: Schedule) -> str:
    """The load in words."""
    load, limits = schedule.made_of, schedule.limits
    ends = [f"for {limits.duration_s:g} s"] if limits.duration_s else []
    guard = [f"at most {limits.max_in_flight} in flight"] if limits.max_in_flight else []
    return ", ".join(
        [
            f"{load['requests']} requests",
            *_pace(load),
            *ends,
            *guard,
            *(f"{_SPECIAL[name]} {value}" for name, value in load.items() if name in _SPECIAL),
            f"prompts {load['prompt_tokens']}, outputs {load['output_tokens']} tokens",
            f"seed {load['seed']}",
        ]
    )


_SPECIAL = {
    "trace": "replayed from",
    "speed_up": "faster by",
    "prompts": "texts of",
    "left_out": "left out of the file:",
    "turns": "turns a session:",
    "think_s": "seconds between them:",
    "shared_prefix": "share of each prompt that others begin with:",
    "prefixes": "such beginnings:",
}


def _ending(done: Run) -> list[str]:
    """Where it ended before it was to."""
    schedule = done.schedule
    timed = schedule.concurrency is not None and schedule.limits.duration_s is not None
    if done.cut_off:
        return ["  CUT OFF       before the end: run it again"]
    if done.over_saturated:
        return ["  STOPPED       over-saturated: ever more requests were under way; lower --rate"]
    if timed and len(done.records) == len(schedule.requests):
        return ["  the requests were sent before --duration was over; give more --requests"]
    return []


def _pace(load: Mapping[str, Any]) -> list[str]:
    if load["concurrency"]:
        return [f"{load['concurrency']} at a time"]
    if load["rate"] is None:
        return []
    rate = f"{load['rate']:g} to {load['rate_to']:g}" if "rate_to" in load else f"{load['rate']:g}"
    return [f"{rate} {'sessions' if 'turns' in load else 'requests'}/s, {load.get('arrivals', 'Poisson')}"]


def promised(slo: Attainment) -> list[str]:
    """What was kept of an Slo."""
    word = {True: "kept", False: "MISSED", None: "not known, of too few requests or tokens that were not counted"}
    goodput = f"goodput: {_number(slo.goodput_per_s)} requests/s"
    if slo.good_share:
        share, low, high = (100 * each for each in slo.good_share)
        goodput += f", {share:.1f} % of {slo.requests} requests good [{low:.1f}, {high:.1f}]"
    return [f"SLO {word[slo.attained]}", *map(_term, slo.terms), goodput]


def _term(term: Kept) -> str:
    missed = "" if term.kept is not False else "  MISSED"
    return f"  {term.term:26}{_milliseconds(term.found_s):>10} ms, at most {_milliseconds(term.limit_s)} ms{missed}"


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


def _form(done: Run) -> str:
    """How it was asked, where not as usual."""
    chat, trust = done.service.api == "chat", done.service.described()["tls"]
    said = [*(["chat"] if chat else []), *([f"TLS, certificates {trust}"] if trust else [])]
    return f" ({', '.join(said)})" if said else ""


def _kinds(summary: Summary) -> list[str]:
    """What the answers were made of, where it was not text alone."""
    said = []
    if set(summary.kinds) - {"text"}:
        said.append("of what was sent " + ", ".join(f"{share:.1%} {kind}" for kind, share in summary.kinds.items()))
    if summary.unsent_tokens:
        said.append(
            f"{summary.unsent_tokens} tokens of reasoning were counted and not sent: no time per token has them"
        )
    return said


def _on_the_wire(summary: Summary) -> list[str]:
    """What the network did to the figures, where it did anything."""
    said = []
    if summary.coalesced_reads:
        said.append(f"{summary.coalesced_reads:.1%} of the reads brought several chunks: gaps are blurred")
    if summary.reconnects:
        said.append(f"{summary.reconnects} requests were sent again, as the server had closed their connection")
    return said


def _offered(schedule: Schedule) -> str:
    """Of an open loop: what its times say, where there are more than one."""
    times = [request.at_s for request in schedule.requests]
    one_by_one = schedule.concurrency is None and not any(request.after is not None for request in schedule.requests)
    return f" of {len(times) / max(times):.2f} offered" if one_by_one and max(times) > 0 else ""


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
