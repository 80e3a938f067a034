"""One step of a model of the Llama family or Gemma 3, in one call: what src/model.h describes, written from Python.

Everything is a word of 8 bytes, in the order of src/model.h: an integer, a double or an address. Nothing is copied; a
`StepModel` keeps the tensors whose addresses it has written.
"""

import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import pack

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.serve.kernels.cpu.weight import CpuWeight, require

FAULTS = (  # StepFault of src/model.h
    "",
    "a step needs at least one token in every chunk",
    "a token is not in the vocabulary",
    "a position is beyond the longest sequence",
    "a sequence has fewer cache blocks than tokens",
    "a block is not in the cache",
    "the wanted tokens are not ascending, or not in the step",
)
PIECE = 64  # of src/workspace.h: tokens that go through the layers together
TOKEN_GROUP = 16  # a cache block holds a multiple of so many


@dataclass(frozen=True)
class StepLinear:
    """A linear; its rows are a multiple of 8."""

    weight: CpuWeight
    bias: Tensor | None

    @property
    def words(self) -> bytes:
        w = self.weight
        return pack("=5q", w.kind, w.data.data_ptr(), w.rows, w.columns, _address(self.bias))

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight.data] if self.bias is None else [self.weight.data, self.bias]


@dataclass(frozen=True)
class StepLayer:
    """A decoder layer. Norms [hidden], `query_norm` and `key_norm` [head dim], all bfloat16.

    An `after_norm` is that of what is added to the residual.
    """

    attention_norm: Tensor
    mlp_norm: Tensor
    attention_after_norm: Tensor | None
    mlp_after_norm: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    linears: Sequence[StepLinear]  # query, key, value, output, gate, up, down
    angles: tuple[Tensor, Tensor]  # cosines and sines [positions, head dim / 2]
    window: int  # tokens that one attends to, itself included; 0: all

    @property
    def vectors(self) -> list[Tensor | None]:
        norms = [self.attention_norm, self.mlp_norm, self.attention_after_norm, self.mlp_after_norm]
        return [*norms, self.query_norm, self.key_norm, *self.angles]


@dataclass(frozen=True)
class StepShape:
    """The numbers of a model. Sizes of rows are multiples of 16."""

    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    is_gemma: bool  # norms multiply by 1 + weight, and gates are GELU (tanh), not SiLU
    norm_eps: float
    attention_scale: float
    embedding_scale: float


class Chunks:
    """Consecutive tokens of sequences, as (start, tokens, table): `start` of them are in the cache, in these blocks.

    A table that is an array of C ints is read where it lies.
    """

    def __init__(self, chunks: Iterable[tuple[int, int, Sequence[int]]]) -> None:
        self._words, self._tables, self.tokens = array("q"), list[Sequence[int]](), 0
        for start, tokens, blocks in chunks:
            table = blocks if isinstance(blocks, array) and blocks.typecode == "i" else array("i", blocks)
            self._words.extend((start, tokens, *table.buffer_info()))
            self._tables.append(table)
            self.tokens += tokens

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def address(self) -> int:
        return _start(self._words)


class StepModel:
    """A model with its cache, ready to compute steps. Calls from several threads wait for each other."""

    def __init__(
        self,
        shape: StepShape,
        layers: Sequence[StepLayer],
        embeddings: Tensor,  # [vocabulary, hidden]
        norm: Tensor,
        head: StepLinear,
        blocks: int,
        block_size: int,
    ) -> None:
        self.shape, self.positions, self.blocks, self.block_size = shape, len(layers[0].angles[0]), blocks, block_size
        self._cpu, self._lock = require(), threading.Lock()
        block_numbers = shape.key_heads * block_size * shape.head_dim
        self.cache = torch.empty(len(layers), 2, blocks, block_numbers, dtype=torch.bfloat16)
        self._kept: list[Tensor | None] = [embeddings, norm, *head.tensors]
        self._layers = _bytes(b"".join(self._layer(i, layer) for i, layer in enumerate(layers)))
        s = shape
        self._model = _bytes(
            pack(
                "=10q3d2q", s.hidden, s.intermediate, s.heads, s.key_heads, s.head_dim, s.vocabulary, self.positions,
                blocks, block_size, s.is_gemma, s.norm_eps, s.attention_scale, s.embedding_scale,
                _address(embeddings), _address(norm),
            )
            + head.words
            + pack("=2q", len(layers), self._layers.data_ptr())
        )  # fmt: skip
        self._threads, self._workspace = 0, torch.empty(0)

    def step(
        self,
        tokens: Sequence[int],
        chunks: Chunks,
        wanted: Sequence[int],
    ) -> tuple[Tensor, list[int]]:
        """Compute the tokens of chunks -> logits [wanted, vocabulary], the best token of each.

        A row whose best is NaN or infinite has -1 for it. Raises InputError, with nothing computed, for what is not in
        the model or the cache.
        """
        flat, rows, best = array("q", tokens), array("q", wanted), array("q", wanted)
        logits = torch.empty(len(wanted), self.shape.vocabulary, dtype=torch.bfloat16)
        with self._lock:
            self._make_room()
            fault = self._cpu.step(
                self._model.data_ptr(), len(flat), len(chunks), len(wanted), _start(flat), chunks.address,
                _start(rows), logits.data_ptr(), _start(best), self._workspace.data_ptr(), self._threads,
            )  # fmt: skip
        if fault:
            raise InputError(f"the step cannot be computed: {FAULTS[fault]}")
        return logits, best.tolist()

    def _make_room(self) -> None:
        """Working memory for the threads that torch has now."""
        if self._threads != torch.get_num_threads():
            self._threads = torch.get_num_threads()
            size = self._cpu.workspace_bytes(self._model.data_ptr(), self._threads)
            self._workspace = torch.empty(size, dtype=torch.uint8)

    def _layer(self, index: int, layer: StepLayer) -> bytes:
        keys, values = self.cache[index]
        self._kept += [*layer.vectors, *(tensor for linear in layer.linears for tensor in linear.tensors)]
        linears = b"".join(linear.words for linear in layer.linears)
        return (
            pack("=8q", *map(_address, layer.vectors))
            + linears
            + pack("=3q", layer.window, _address(keys), _address(values))
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _start(words: "array[int]") -> int:
    return words.buffer_info()[0]


def _bytes(words: bytes) -> Tensor:
    return torch.frombuffer(bytearray(words), dtype=torch.uint8)
