"""Models that decode step by step: by one of our runners, or by transformers' own forward and cache."""

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from twofour.prune.errors import ModelError
from twofour.prune.model.decoding import with_cache
from twofour.serve.engine.assembly.assemble import load
from twofour.serve.engine.runners import Chunk, ModelRunner, choice
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.types import EngineConfig
from twofour.serve.model.loading import weight_report

PROMPT_CHUNK = 256


class Decoder(Protocol):
    def facts(self) -> dict[str, Any]:
        """What runs here, and the bytes of weights that a step reads."""

    def prepare(self, prompt: Sequence[int], batch: int) -> list[int]:
        """Compute the prompt of so many sequences; return the likeliest next token of each."""

    def step(self, tokens: Sequence[int], position: int) -> list[int]:
        """Compute one token of each sequence; all are at one position. Later ones are forgotten."""


class Ours:
    """A runner of the engine. Its cache holds `batch` sequences of `length` tokens."""

    def __init__(self, config: EngineConfig, runner: str, batch: int, length: int) -> None:
        self.model = load(config)
        blocks = -(-length // config.block_size)
        self._tables = [array("i", range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
        self._runner = _built(self.model, config, runner, batch * blocks, length)

    def facts(self) -> dict[str, Any]:
        report = weight_report(self.model)
        return {
            "runner": self._runner.name,
            "kernels": report.kernels,
            "weight_bytes": report.linear_bytes + _head_bytes(self.model),
            "versions": {"torch": torch.__version__},
        }

    def prepare(self, prompt: Sequence[int], batch: int) -> list[int]:
        return [self._read(prompt, sequence) for sequence in range(batch)]

    def step(self, tokens: Sequence[int], position: int) -> list[int]:
        chunks = [Chunk([token], position, self._tables[i], range(1)) for i, token in enumerate(tokens)]
        return self._best(self._runner.forward(chunks))

    def _read(self, prompt: Sequence[int], sequence: int) -> int:
        for start in range(0, len(prompt), PROMPT_CHUNK):
            part = prompt[start : start + PROMPT_CHUNK]
            last = range(len(part) - 1, len(part))
            logits = self._runner.forward([Chunk(part, start, self._tables[sequence], last, len(part))])
        return self._best(logits)[0]

    def _best(self, logits: Tensor) -> list[int]:
        best = self._runner.best
        return logits.argmax(-1).tolist() if best is None else list(best)


def _built(model: Any, config: EngineConfig, runner: str, blocks: int, length: int) -> ModelRunner:
    if runner == GenericRunner.name:
        return choice.generic(model, attention_layers(model), blocks, config.block_size)
    built, why = choice.choose(model, config.kernels, config.block_size).build(blocks, config.block_size, length)
    if built.name != runner:
        raise ModelError(f"this model has no {runner} runner: {why}")
    return built


class Transformers:
    """The model as transformers loads it, with DynamicCache."""

    def __init__(self, folder: str, dtype: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
        self._cache = DynamicCache()

    def facts(self) -> dict[str, Any]:
        linears = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        return {
            "runner": f"{type(self.model).__name__}, {str(self.model.dtype).removeprefix('torch.')}",
            "weight_bytes": sum(linear.weight.nbytes for linear in linears),  # a tied head is one of them
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def prepare(self, prompt: Sequence[int], batch: int) -> list[int]:
        self._cache = DynamicCache(config=self.model.config)
        best = self._forward(torch.tensor([prompt]))
        self._cache.batch_repeat_interleave(batch)
        return best * batch

    def step(self, tokens: Sequence[int], position: int) -> list[int]:
        if beyond := self._cache.get_seq_length() - position:
            self._cache.crop(-beyond)
        return self._forward(torch.tensor(tokens)[:, None])

    def _forward(self, ids: Tensor) -> list[int]:
        with torch.inference_mode():
            logits = self.model(input_ids=ids, **with_cache(self.model, self._cache), logits_to_keep=1).logits
        return logits[:, -1].argmax(-1).tolist()


def _head_bytes(model: Any) -> int:
    head = model.get_output_embeddings()
    return int(head.nbytes if hasattr(head, "nbytes") else head.weight.nbytes)
