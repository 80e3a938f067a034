"""The verb `bench`: its sub-verbs, each in a module of its own."""

import argparse

from twofour.bench.commands import compare as compare_command
from twofour.bench.commands import http as http_command
from twofour.bench.commands import kernels as kernels_command
from twofour.bench.commands import overhead as overhead_command
from twofour.bench.commands import peers as peers_command
from twofour.bench.commands import pruning as pruning_command
from twofour.bench.commands import report as report_command
from twofour.bench.commands import run as run_command

_VERBS = {
    "run": (run_command, "load-test one server"),
    "compare": (compare_command, "dense against 2:4, paired, with a report"),
    "kernels": (kernels_command, "the 2:4 multiplication against the machine's ceiling and dense"),
    "pruning": (pruning_command, "presets of pruning, by quality and minutes"),
    "overhead": (overhead_command, "what the engine adds to a decode step of the model"),
    "http": (http_command, "what the HTTP layer alone sustains, with a scripted engine"),
    "peers": (peers_command, "running servers of any make, under the same load in turns"),
    "report": (report_command, "the table of a report that was written before"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="bench_verb", required=True, metavar="VERB")
    for name, (module, summary) in _VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=summary))


def run(args: argparse.Namespace) -> int:
    module, _ = _VERBS[args.bench_verb]
    status: int = module.run(args)
    return status
