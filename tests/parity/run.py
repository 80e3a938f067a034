"""Parity: our SparseGPT and Wanda against llm-compressor's own, on the same model and the same token ids.

    python tests/parity/run.py MODEL --oracle .parity/bin/python        (or: make parity)

The model samples the ids, llm-compressor and twofour prune it on them, all in float32, and the perplexities of both
results are compared on text that neither saw: more of the model's own, or --text. Exit status 0: within 0.1 %; 1: not.
The seconds are of pruning alone, without loading, sampling and saving; compare them on a quiet machine only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from twofour.prune import anatomy, quality, text
from twofour.prune.journal import Journal, request
from twofour.prune.progress import to_stderr
from twofour.prune.recipe import Method, PruneConfig
from twofour.prune.run import pruned_blocks

ORACLE = Path(__file__).with_name("oracle.py")
METHODS: tuple[Method, ...] = ("sparsegpt", "wanda")
TOLERANCE = 0.001
EVALUATION_SEED, EVALUATION_WINDOWS = 1_000_003, 16


@dataclass(frozen=True)
class Result:
    """One method by both."""

    method: str
    perplexities: tuple[float, float]  # llm-compressor's, ours
    seconds: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.perplexities[1] / self.perplexities[0] - 1

    def __str__(self) -> str:
        (theirs, ours), (their_s, our_s) = self.perplexities, self.seconds
        return (
            f"{self.method:10} {theirs:14.4f} {ours:11.4f} {self.difference:+11.4%} "
            f"{their_s:14.1f} {our_s:9.1f} {our_s / their_s:8.2f}x"
        )


def main() -> int:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = anatomy.load(Path(args.model)).float()
        tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
        dense = work / "dense"
        for part in (model, tokenizer):
            part.save_pretrained(dense)
        ids = text.self_sampled(model, tokenizer, args.samples, args.length, 0, to_stderr())
        unseen = _unseen(model, tokenizer, args.text, args.length)
        print(
            f"{args.model}: dense perplexity {perplexity(model, unseen):.4f}; pruned on {args.samples} x {args.length}"
        )
        print(f"{'':10} llm-compressor     twofour  difference llm-compressor   twofour    ratio")
        results = list(_compare(args.oracle, dense, ids, unseen, work))
    apart = [result.method for result in results if abs(result.difference) > TOLERANCE]
    print(
        f"FAILED: {', '.join(apart)} differ by more than {TOLERANCE:.1%}"
        if apart
        else f"parity: within {TOLERANCE:.1%}"
    )
    return 1 if apart else 0


def _compare(oracle: str, dense: Path, ids: Tensor, unseen: Tensor, work: Path) -> Iterator[Result]:
    for method in METHODS:
        theirs = work / method
        their_s = prune_by_oracle(oracle, method, dense, ids, theirs)
        ours, our_s = prune_here(dense, ids, method)
        perplexities = (perplexity(anatomy.load(theirs), unseen), perplexity(ours, unseen))
        yield (result := Result(method, perplexities, (their_s, our_s)))
        print(result, flush=True)


def prune_by_oracle(oracle: str, method: str, dense: Path, ids: Tensor, out: Path) -> float:
    """Let llm-compressor write `out`; returns its seconds."""
    save_file({"ids": ids}, out.with_suffix(".safetensors"))
    command = [oracle, str(ORACLE), method, str(dense), str(out.with_suffix(".safetensors")), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def prune_here(dense: Path, ids: Tensor, method: Method) -> tuple[nn.Module, float]:
    """Prune as `twofour prune --method` does, journal and all; returns the model and the seconds."""
    parts, config = anatomy.dissect(anatomy.load(dense)), PruneConfig(method=method)
    with Journal(dense.with_name(f"{method}-here"), request(dense, config)) as journal:
        journal.tokens(lambda: ids)  # what it has, the run does not sample
        start = time.perf_counter()
        pruned_blocks(parts, dense, config, journal, to_stderr())
        return parts.model, time.perf_counter() - start


def perplexity(model: nn.Module, windows: Tensor) -> float:
    with torch.inference_mode():
        return quality.evaluate(lambda ids: model(ids, use_cache=False).logits, windows).perplexity


def _unseen(model: nn.Module, tokenizer: Any, file: Path | None, length: int) -> Tensor:
    if file:
        return quality.windows(text.tokens(tokenizer, file), length, EVALUATION_WINDOWS)
    return text.self_sampled(model, tokenizer, EVALUATION_WINDOWS, length, EVALUATION_SEED, to_stderr())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a dense model folder")
    parser.add_argument("--oracle", required=True, metavar="PYTHON", help="of the environment with llm-compressor")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--text", type=Path, metavar="FILE", help="judge on the first windows of this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
