"""Parity: our SparseGPT and Wanda against llm-compressor's own, on the same model and the same token ids.

    python tests/parity/run.py MODEL --oracle .parity/bin/python        (or: make parity)

The model samples the ids, llm-compressor and twofour prune it on them, all in float32, and the perplexities of the
results are compared on text that neither saw: more of the model's own, or --text. Ours are two. `same inputs`: every
block is pruned behind llm-compressor's own pruned blocks, so nothing but the method and its arithmetic differs; this is
what must agree. `alone`: the whole run. There a mask that flips on a near-tie of two weights changes what all blocks
behind it see, and after some thirty blocks sums in another order are enough for a few per cent of perplexity.

Exit status 0: within 0.1 % on the same inputs; 1: not. The seconds are of the whole runs, of pruning alone, without
loading, sampling and saving; compare them on a quiet machine only.
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

from twofour.prune.config import Method, PruneConfig
from twofour.prune.label import quality
from twofour.prune.model import anatomy
from twofour.prune.model.anatomy import Block
from twofour.prune.model.batches import Batch, record
from twofour.prune.progress import to_stderr
from twofour.prune.recovery.training import Outcome
from twofour.prune.run import calibrate
from twofour.prune.run.journal import Journal
from twofour.prune.run.prepare import prepare
from twofour.prune.run.prune import pruned_model
from twofour.prune.run.solvers import solver
from twofour.prune.text import corpus
from twofour.prune.text.plain import PlainWriter
from twofour.prune.text.sources import Calibration

ORACLE = Path(__file__).with_name("oracle.py")
METHODS: tuple[Method, ...] = ("sparsegpt", "wanda")
TOLERANCE = 0.001
EVALUATION_SEED, EVALUATION_WINDOWS = 1_000_003, 16


@dataclass(frozen=True)
class Result:
    """One method by both."""

    method: str
    theirs: float  # perplexity
    same_inputs: float  # ours
    alone: float  # ours
    flipped: float  # share of the weights that only one of both keeps, on the same inputs
    seconds: tuple[float, float]  # theirs, ours

    @property
    def difference(self) -> float:
        return self.same_inputs / self.theirs - 1

    def __str__(self) -> str:
        their_s, our_s = self.seconds
        return (
            f"{self.method}: perplexity {self.theirs:.4f} by llm-compressor, {self.same_inputs:.4f} on the same inputs "
            f"({self.difference:+.4%}, {self.flipped:.4%} of the weights are kept by one of both only), "
            f"{self.alone:.4f} alone ({self.alone / self.theirs - 1:+.4%}); {their_s:.1f} s and {our_s:.1f} s "
            f"({our_s / their_s:.2f}x)"
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
        ids = corpus.self_sampled(PlainWriter(model), tokenizer, args.samples, args.length, 0, to_stderr())
        unseen = _unseen(model, tokenizer, args.text, args.length)
        print(
            f"{args.model}: dense perplexity {perplexity(model, unseen):.4f}; pruned on {args.samples} x {args.length}"
        )
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
        alone, our_s = prune_here(dense, ids, method)
        same_inputs, flipped = prune_on_inputs_of(theirs, dense, ids, method)
        found = [perplexity(model, unseen) for model in (anatomy.load(theirs), same_inputs, alone)]
        yield (result := Result(method, *found, flipped, (their_s, our_s)))
        print(result, flush=True)


def prune_by_oracle(oracle: str, method: str, dense: Path, ids: Tensor, out: Path) -> float:
    """Let llm-compressor write `out`; returns its seconds."""
    save_file({"ids": ids}, out.with_suffix(".safetensors"))
    command = [oracle, str(ORACLE), method, str(dense), str(out.with_suffix(".safetensors")), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def prune_here(dense: Path, ids: Tensor, method: Method) -> tuple[nn.Module, float]:
    """Prune as `twofour prune --method` does, journal and all; returns the model and the seconds."""
    ready = prepare(dense, PruneConfig(method=method, samples=len(ids), length=ids.shape[1]))
    with Journal(dense.with_name(f"{method}-here")) as journal:
        journal.begin({})
        journal.text(lambda: Calibration(ids))  # what it has, the run does not sample
        start = time.perf_counter()
        pruned_model(ready, journal, to_stderr())
        return ready.anatomy.model, time.perf_counter() - start


def prune_on_inputs_of(theirs: Path, dense: Path, ids: Tensor, method: Method) -> tuple[nn.Module, float]:
    """Prune every block behind those that the other has pruned; returns the model, and the share of other masks."""
    parts, other = anatomy.dissect(anatomy.load(dense)), anatomy.dissect(anatomy.load(theirs)).linears
    ours: dict[str, Tensor] = {}

    def adopt(block: Block, index: int, batches: list[Batch]) -> Outcome:
        for name, linear in block.linears.items():
            ours[name] = linear.weight.clone()
            linear.weight.copy_(other[name].weight)
        return Outcome(0.0, 0.0, 0)

    walk = calibrate.walk(parts, record(parts, ids), *solver(PruneConfig(method=method)), to_stderr(), recover=adopt)
    list(walk)
    for name, linear in parts.linears.items():
        linear.weight.copy_(ours[name])
    flipped = sum(int(((ours[name] != 0) != (other[name].weight != 0)).sum()) for name in ours)
    return parts.model, flipped / sum(weight.numel() for weight in ours.values())


def perplexity(model: nn.Module, windows: Tensor) -> float:
    with torch.inference_mode():
        return quality.evaluate(lambda ids: model(ids, use_cache=False).logits, windows).perplexity


def _unseen(model: nn.Module, tokenizer: Any, file: Path | None, length: int) -> Tensor:
    if file:
        return quality.windows(corpus.tokens(tokenizer, file), length, EVALUATION_WINDOWS)
    return corpus.self_sampled(PlainWriter(model), tokenizer, EVALUATION_WINDOWS, length, EVALUATION_SEED, to_stderr())


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
