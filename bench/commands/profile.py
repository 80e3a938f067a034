"""The verb `bench profile`: one server as `twofour plan` needs to know it."""

import argparse
import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import INVALID, service_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.capacity.loads import Shape
    from twofour.bench.capacity.profile import Profile
    from twofour.bench.load.service import Service

_LIMITS = {
    "max_num_seqs": "the most sequences in a step",
    "max_num_batched_tokens": "the most tokens in a step",
    "kv_blocks": "blocks of its cache",
    "block_size": "tokens of a block",
    "context_length": "the most tokens of a request",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a running server for twofour plan: how long its steps take, by what they compute. Exit status 3: a "
        "validity gate failed."
    )
    parser.add_argument("url", metavar="URL", help="http://host:port of an OpenAI-compatible server")
    parser.add_argument("--name", metavar="NAME", help="what plans call it (default: its model)")
    parser.add_argument("--minutes", type=float, default=10, metavar="M", help="how long it takes (default: 10)")
    parser.add_argument(
        "--prompt-tokens", default="128~0.6", metavar="L", help="as of bench run, of what is planned (default: 128~0.6)"
    )
    parser.add_argument("--output-tokens", default="64~0.6", metavar="L", help="the same (default: 64~0.6)")
    parser.add_argument(
        "--most-at-once", type=int, metavar="N", help="clients at the top of the ladder (default: as many as it runs)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the loads (default: 0)")
    parser.add_argument(
        "--from-outside", action="store_true", help="do not read its step log, as if it kept none: by the client alone"
    )
    parser.add_argument(
        "--quality",
        type=Path,
        metavar="FILE",
        help="what eval --baseline --json printed of its model: what it has lost",
    )
    parser.add_argument(
        "--dense", type=Path, metavar="FILE", help="of a 2:4 model: the profile of the dense one. Can both be right?"
    )
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the profile here")
    limits = parser.add_argument_group("how it was started, where its /metrics do not say")
    for name, what in _LIMITS.items():
        limits.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=what)
    service_flags.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.capacity import profile as profiles
    from twofour.bench.capacity.profile_table import table
    from twofour.bench.hardware import circumstances
    from twofour.prune import out

    _refuse_impossible(args)
    out.claim(args.out)
    about = circumstances()
    with interrupt.in_order():
        made, cut_off = _measured(args, service_flags.read(args), about["hardware"])
        document = profiles.document(made, {})
        text = json.dumps(document | about, allow_nan=False)
        out.deliver(text if args.json else table(document), args.out, text)
        if cut_off:
            raise cut_off
    return 0 if made.valid else INVALID


def _measured(
    args: argparse.Namespace, service: "Service", hardware: Any
) -> "tuple[Profile, KeyboardInterrupt | None]":
    from dataclasses import replace

    from twofour.bench.capacity import consistent, measure, server
    from twofour.bench.capacity.profile import read
    from twofour.bench.load.endpoint import Endpoint
    from twofour.prune.progress import to_stderr

    dense, lost = read(args.dense) if args.dense else None, _loss(args.quality)
    endpoint = Endpoint(service.url, service.model, service.access)
    known = server.look(endpoint, {name: getattr(args, name) for name in _LIMITS}, hardware)
    found = measure.visits(service, known, _shape(args), args.minutes, args.most_at_once, to_stderr())
    logged = not args.from_outside and any(visit.steps for visit in found.visits)
    if found.cut_off and not found.visits:
        raise found.cut_off
    try:
        made = measure.profile(args.name or service.model, service.model, known, found, logged, args.seed)
    except InputError:  # too little was measured, perhaps for that reason
        if found.cut_off:
            raise found.cut_off from None
        raise
    wrong = consistent.errors(dense, made) if dense else []
    made = replace(made, quality_loss=lost, valid=made.valid and not wrong, failed=[*made.failed, *wrong])
    return made, found.cut_off


def _shape(args: argparse.Namespace) -> "Shape":
    from twofour.bench.capacity.loads import Shape
    from twofour.bench.traffic import lengths

    return Shape(lengths.tokens(args.prompt_tokens), lengths.tokens(args.output_tokens), args.seed)


def _loss(file: Path | None) -> float | None:
    """How much higher its perplexity is, as a share of the dense one's."""
    from twofour.bench.comparison import quality

    known = quality.from_file(file) if file else None
    if known is None or not known.dense_perplexity or known.sparse_perplexity is None:
        return None
    return known.sparse_perplexity / known.dense_perplexity - 1


def _refuse_impossible(args: argparse.Namespace) -> None:
    if not 0 < args.minutes < inf:
        raise InputError(f"{args.minutes:g} minutes; --minutes is a number above 0")
    wrong: Sequence[str] = [n for n in (*_LIMITS, "most_at_once") if (v := getattr(args, n)) is not None and v < 1]
    for name in wrong:
        raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it is at least 1")
