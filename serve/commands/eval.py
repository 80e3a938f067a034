"""The verb `eval`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twofour.serve.commands import rounding
from twofour.serve.evaluation import WINDOW_TOKENS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id, packed or dense")
    parser.add_argument("--baseline", metavar="DENSE", help="the dense model: adds KL and top-1 agreement")
    parser.add_argument(
        "--against", metavar="PRUNED", help="the same model by SparseGPT: adds how much of its gap to dense is closed"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: text sampled from the baseline")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="for a chat model, a question or messages on each line; default: plain questions that twofour brings",
    )
    parser.add_argument("--window", type=int, default=WINDOW_TOKENS, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument("--windows", type=int, metavar="N", help="score at most this many")
    parser.add_argument("--kernels", default="auto", metavar="NAME", help="as served (default: %(default)s)")
    rounding.add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document there too")
    parser.add_argument(
        "--lm-eval", metavar="TASKS", help="run these tasks of lm-eval too, separated by commas (extra lm-eval)"
    )
    parser.add_argument("--lm-eval-path", type=Path, metavar="FOLDER", help="of task files that lm-eval does not bring")
    parser.add_argument(
        "--label",
        action="store_true",
        help="put the figures into the twofour.json of MODEL, and make its README.md and report.html anew",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.errors import InputError
    from twofour.prune.label import publish
    from twofour.prune.out import claim, deliver
    from twofour.prune.progress import to_stderr
    from twofour.serve.evaluation.conversation import Questions
    from twofour.serve.evaluation.evaluate import measure
    from twofour.serve.evaluation.harness import Tasks

    if args.lm_eval_path and not args.lm_eval:
        raise InputError("there is no task to look for; give --lm-eval with --lm-eval-path")
    if args.label and (args.lm_head or args.dense_values):
        raise InputError(
            "a label is of the model as it is stored; leave --lm-head and --dense-values away with --label"
        )
    claim(args.out)
    if args.label:
        publish.require_labelled(Path(args.model))
    if args.label and args.baseline is None:
        raise InputError("a label says what was lost against the dense model; give --baseline with --label")
    if args.questions and args.baseline is None:
        raise InputError("the dense model's answers are what is judged by; give --baseline with --questions")
    done = measure(
        args.model,
        args.baseline,
        args.text,
        args.window,
        args.windows,
        args.kernels,
        to_stderr(),
        args.against,
        Tasks(args.lm_eval.split(","), args.lm_eval_path) if args.lm_eval else None,
        args.lm_head,
        args.dense_values,
        Questions(args.questions),
    )
    answers = done.answers_as_dict()
    if args.label:
        publish.add_quality(Path(args.model), done.text, done.as_dict(), done.lm_eval, answers)
    rounded = {"lm_head": args.lm_head, "dense_values": args.dense_values}
    about = {"model": args.model, "baseline": args.baseline, "lm_eval": done.lm_eval, "answers": answers}
    document = done.as_dict() | about | rounded
    deliver(json.dumps(document) if args.json else table(document), args.out, json.dumps(document, indent=2))
    return 0


def table(document: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    from twofour.prune.label.quality import with_error
    from twofour.serve.evaluation import harness

    first = document["begins_with"] or "the first of each"
    windows = f"{document['windows']} windows of {document['window_tokens']} tokens, {first} not scored"
    lines = [f"{document['model']} on {document['text']}", f"  {windows}", *_rounded(document)]
    lines.append(f"  perplexity       {with_error(document['perplexity'], document['perplexity_error'], '.3f')}")
    if document["baseline"] is not None:
        ratio = document["perplexity"] / document["baseline_perplexity"]
        lines.append(f"  of the baseline  {document['baseline_perplexity']:.3f} (ratio {ratio:.3f})")
        lines.append(
            f"  KL to it         {with_error(document['kl_nats'], document['kl_error'], '.4f')} nats per token"
        )
        lines.append(f"  top-1 agreement  {document['agreement']:.2%}")
    if answers := document["answers"]:
        kl = with_error(answers["kl_nats"], answers["kl_error"], ".4f")
        lines.append(f"  its answers      KL {kl}, top-1 agreement {answers['agreement']:.2%} on those to")
        lines.append(f"                   {answers['questions']}, greedy, {answers['tokens']} tokens")
    if document["head_kl_nats"] is not None:
        alone = with_error(document["head_kl_nats"], document["head_kl_error"], ".4f")
        lines.append(f"  of lm_head int8  KL {alone} alone, all else the same")
    if document["gap_closed"] is not None:
        gap = f"{document['gap_closed']:.3f} of perplexity, {document['nll_gap_closed']:.3f} of its logarithm"
        lines.append(f"  gap closed       {gap} (against {document['against_perplexity']:.3f})")
    if document["lm_eval"] is not None:
        lines += ["", harness.table(document["lm_eval"])]
    return "\n".join(lines)


def _rounded(document: dict[str, Any]) -> Iterator[str]:
    if document["lm_head"]:
        yield f"  lm_head rounded to {document['lm_head']} at load"
    if document["dense_values"]:
        yield f"  dense linears rounded to {document['dense_values']} at load"
