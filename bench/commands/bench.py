"""The verb `bench`: its sub-verbs, each in a module of its own."""

import argparse

from twofour.bench.commands import (
    compare,
    decode,
    gate,
    http,
    kernels,
    overhead,
    profile,
    pruning,
    report,
    selftest,
    sweep,
    vllm,
)
from twofour.bench.commands import run as run_verb

_VERBS = {
    "run": (run_verb, "load-test one server"),
    "sweep": (sweep, "running servers, under a ladder of loads or up to the limit of an SLO"),
    "compare": (compare, "dense against 2:4, paired, with a report"),
    "profile": (profile, "one server as twofour plan needs to know it"),
    "gate": (gate, "is the new one slower than the base? exit status 0, 1, 2 or 3"),
    "decode": (decode, "decode steps of our runners, transformers and llama.cpp, in turns"),
    "vllm": (vllm, "vLLM offline, dense against 2:4, in turns"),
    "kernels": (kernels, "the 2:4 multiplication against the machine's ceiling and dense"),
    "pruning": (pruning, "presets of pruning, by quality and minutes"),
    "overhead": (overhead, "what the engine adds to a decode step of the model"),
    "http": (http, "what the HTTP layer alone sustains, with a scripted engine"),
    "selftest": (selftest, "what load can be measured honestly on this machine"),
    "report": (report, "the table of a report that was written before"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="bench_verb", required=True, metavar="VERB")
    for name, (module, summary) in _VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=summary))


def run(args: argparse.Namespace) -> int:
    module, _ = _VERBS[args.bench_verb]
    status: int = module.run(args)
    return status
