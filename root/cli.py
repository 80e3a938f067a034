"""The command `twofour`: a verb, and the module that knows it. Imports only what that verb needs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from twofour import __version__, huge_pages
from twofour.prune.errors import TwofourError

COMMIT = Path(__file__).with_name("commit.txt")
VERBS = {
    "demo-model": ("twofour.prune.commands.demo_model", "make a folder of the demo model, SmolLM2-135M-Instruct"),
    "prune": ("twofour.prune.commands.prune", "make a dense model 2:4"),
    "check": ("twofour.prune.commands.check", "verify a pruned folder"),
    "convert": ("twofour.prune.commands.convert", "packed to dense-with-zeros, and back"),
    "eval": ("twofour.serve.commands.eval", "perplexity, KL and agreement of exactly what is served"),
    "serve": ("twofour.serve.commands.serve", "an OpenAI-compatible endpoint"),
    "plan": ("twofour.bench.commands.plan", "how many machines of which option keep an SLO, and how sure that is"),
    "bench": ("twofour.bench.commands.bench", "load tests: one server, or dense against 2:4"),
    "plan-validate": ("twofour.bench.commands.plan_validate", "how wrong a profile is on loads it has not seen"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 1 for an error with a message, 130 when interrupted,
    141 when the reader of the output has gone."""
    try:
        if arguments is None:
            huge_pages.hear_interrupts()
        args = _read(list(sys.argv[1:] if arguments is None else arguments))
        if arguments is None:
            huge_pages.adopt()
        return _run(args)
    except TwofourError as error:
        _complain(f"error: {error}", error)
        return 1
    except KeyboardInterrupt as error:
        _complain("", error)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _read(given: list[str]) -> argparse.Namespace:
    words, passed_on = _split(given)
    verb = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(verb)
    args = parser.parse_args(words)
    if passed_on and not hasattr(args, "passed_on"):
        parser.error(f"{verb} passes no flags on: nothing may follow --")
    args.passed_on = passed_on
    return args


def _run(args: argparse.Namespace) -> int:
    if args.verb == "prune":  # what is of a floor above is handed in: the engine writes text, kernels are timed
        args.new_writer = import_module("twofour.serve.writing.fused_writer").new_writer
        args.new_clock = import_module("twofour.serve.kernels.clock").clock
    status: int = import_module(VERBS[args.verb][0]).run(args)
    sys.stdout.flush()
    return status


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of a command, and those after the first --, which it passes on to a program that it starts."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _complain(message: str, error: BaseException) -> None:
    """Print a message, then the notes of the error."""
    for line in filter(None, [message, *getattr(error, "__notes__", ())]):
        print(line, file=sys.stderr)


def version(commit: Path) -> str:
    """With the commit that the package was built from, where its build has left it (setup.py)."""
    return f"{__version__} ({commit.read_text().strip()})" if commit.exists() else __version__


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="twofour",
        description="Prune language models to 2:4 sparsity, serve them, and measure what that bought.",
    )
    parser.add_argument("--version", action="version", version=f"twofour {version(COMMIT)}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, summary) in VERBS.items():
        below = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if verb == chosen:
            import_module(module).add_arguments(below)
    return parser
