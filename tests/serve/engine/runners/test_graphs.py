"""Captured decode steps, on a CPU: a tape stands in for a CUDA graph, and replays arithmetic without any Python."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import small_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from twofour.prune.errors import ModelError
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.assembly.capacity import Capacity
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.runners.graphs import (
    Captured,
    DecodeGraphs,
    Launch,
    Shape,
    full_step,
    inputs,
    shapes,
    try_capture,
)
from twofour.serve.engine.types import EngineConfig

SIZE, BLOCKS, CONTEXT = 4, 256, 1024
SMALL = {**small_models.SMALL, "max_position_embeddings": CONTEXT}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral, windowed": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "llama, waiting for its device": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=DYNAMIC)),
}
SHAPES = [Shape(rows, blocks) for rows in (5, 4, 2, 1) for blocks in (256, 128, 64)]
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero"}  # for the device
FROM_PYTHON = {"aten::lift_fresh"}  # numbers, which a graph would hold for ever


class Tape(TorchDispatchMode):
    """Notes every operation on tensors; a replay does the same ones, into the same memory, whatever Python knows."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in WAITS | FROM_PYTHON:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        made = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, made))
        return made

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tape(launch: Launch) -> Launch:
    """Capture as CUDA does: the step runs once before, and nothing is computed for its own sake while it is noted."""
    launch()
    with Tape() as noted:
        launch()
    return noted.replay


@cache
def model(family: str) -> tuple[Any, Any]:
    torch.manual_seed(3)
    made = FAMILIES[family]().eval()
    return made, attention_layers(made)


def runner(family: str = "llama") -> GenericRunner:
    return GenericRunner(*model(family), BLOCKS, SIZE)


@cache
def graphs(family: str = "llama") -> DecodeGraphs:
    return DecodeGraphs(runner(family), SHAPES, tape)


def chunk(tokens: Sequence[int], start: int, blocks: Sequence[int]) -> Chunk:
    """Whose last token's logits are wanted."""
    return Chunk(tokens[start:], start, blocks, range(len(tokens) - start - 1, len(tokens) - start))


def text(length: int, first: int) -> list[int]:
    return [(5 * i + first) % 63 + 1 for i in range(length)]


def test_rows_and_lengths_double_up_to_the_largest_that_the_cache_can_hold() -> None:
    assert shapes(6, 1000, 16, cache_blocks=130) == [
        *[(6, 16), (4, 32), (4, 16), (2, 63), (2, 32), (2, 16), (1, 63), (1, 32), (1, 16)],
    ]
    assert shapes(3, 40, 16, cache_blocks=3) == [(3, 3), (2, 3), (1, 3)]


def test_the_inputs_of_a_step_by_hand() -> None:
    enters, goes_on = Chunk([7], 8, [2, 5, 4], range(1)), Chunk([9], 6, [2, 3, 8], range(1))
    assert inputs(Shape(3, 4), [enters, goes_on], SIZE, scratch=10) == [
        *(7, 9, 0),  # tokens
        *(8, 6, 0),  # positions
        *(4 * SIZE, 3 * SIZE + 2, 10 * SIZE),  # slots
        *(4, 10, 10),  # entered
        *(2, 5, 4, 4),  # the table
        *(2, 3, 3, 3),
        *(10, 10, 10, 10),
    ]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=4), st.integers(0, 2), st.integers(0, 3))
def test_a_row_touches_no_block_but_its_own(starts: list[int], spare_rows: int, spare_blocks: int) -> None:
    own = [[10 * i + j for j in range(start // SIZE + 1)] for i, start in enumerate(starts)]
    shape = Shape(len(starts) + spare_rows, max(map(len, own)) + spare_blocks)
    chunks = [Chunk([1], start, [*blocks, 999], range(1)) for start, blocks in zip(starts, own, strict=True)]
    numbers = torch.tensor(inputs(shape, chunks, SIZE, scratch=77))
    _, positions, slots, entered, table = numbers.split([*[shape.rows] * 4, shape.rows * shape.blocks])
    for row, blocks in enumerate([*own, *[[77]] * spare_rows]):
        mine = table.view(shape)[row].tolist()
        assert mine[: len(blocks)] == blocks and set(mine) == set(blocks)
        assert slots[row] == blocks[-1] * SIZE + positions[row] % SIZE
        assert entered[row] == (77 if positions[row] % SIZE else blocks[-1])


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral, windowed"])
def test_replayed_steps_give_the_logits_of_eager_ones_as_contexts_grow(family: str) -> None:
    """Over block boundaries, with a prefix that two of them share, others joining and leaving, up to a longer table."""
    replaying, eager = graphs(family), runner(family)
    shared, prefix = text(152, 1), range(38)
    texts = [[*shared, *text(22, 7)], [*shared, 9, *text(20, 30)], text(270, 3), text(30, 20)]
    blocks = [[*prefix, *range(60, 68)], [*prefix, *range(70, 78)], range(100, 170), range(40, 50)]
    cuts = [153, 153, 254, 1]
    for runs in (replaying, eager):
        runs.forward([chunk(t[:cut], 0, b) for t, b, cut in zip(texts, blocks, cuts, strict=True)])
    before, most = replaying.replayed, 0.0
    for step in range(14):
        present = [i for i in range(4) if i != 3 or step > 4][: 1 if step == 9 else None]
        chunks = [chunk(texts[i][: cuts[i] + 1], cuts[i], blocks[i]) for i in present]
        expected = eager.forward(chunks)
        most = max(most, float((replaying.forward(chunks) - expected).abs().max() / expected.abs().max()))
        for i in present:
            cuts[i] += 1
    assert most < 1e-5
    assert replaying.replayed - before == 14


def test_rows_that_stand_for_nobody_disturb_no_logits_and_no_block() -> None:
    """Bit for bit, though these rows are NaN throughout, and so is what was in the scratch and the entered blocks."""
    replaying = DecodeGraphs(eager := runner(), SHAPES, tape)
    texts, blocks = [text(9, 1), text(12, 40), text(6, 9)], [[3, 4, 8], [5, 6, 9], [7, 2]]  # the first enters block 8
    eager.forward([chunk(t[:-1], 0, b) for t, b in zip(texts, blocks, strict=True)])
    last = [chunk(t, len(t) - 1, b) for t, b in zip(texts, blocks, strict=True)]
    kept = [cache.clone() for layer in eager.layers.values() for cache in (layer.keys, layer.values)]
    clean = replaying.forward(last)
    caches = [cache for layer in eager.layers.values() for cache in (layer.keys, layer.values)]
    written = {8 * SIZE: 4, 9 * SIZE + 3: 1, 2 * SIZE + 1: 1, BLOCKS * SIZE: 4}  # slots: a block that is entered whole
    stays = torch.ones((BLOCKS + 1) * SIZE, dtype=torch.bool)
    for slot, count in written.items():
        stays[slot : slot + count] = False
    for old, new in zip(kept, caches, strict=True):
        assert torch.equal(old.flatten(0, 1)[stays].nan_to_num(), new.flatten(0, 1)[stays].nan_to_num())
    nobody = model("llama")[0].model.embed_tokens.weight.data[0]
    embedded = nobody.clone()
    try:
        nobody.fill_(torch.nan)
        for cache_ in caches:
            cache_[[8, BLOCKS]] = torch.nan
        again = replaying.forward(last)
    finally:
        nobody.copy_(embedded)
    assert torch.equal(again, clean) and bool(clean.isfinite().all())
    assert replaying.replayed == 2


def test_logits_outlive_the_next_step() -> None:
    replaying, one, other = graphs(), text(3, 5), text(3, 50)
    replaying.forward([chunk(one[:-1], 0, [1]), chunk(other[:-1], 0, [2])])
    first = replaying.forward([chunk(one, 2, [1])])
    kept = first.clone()
    second = replaying.forward([chunk(other, 2, [2])])
    assert torch.equal(first, kept) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("starts", "replayed"),
    [
        ([0], True),  # a prompt of one token
        ([3, 200, 9, 5, 1], True),  # the shortest table, however little of it is used
        ([3, 9, 5, 600], False),  # a longer one of which most would be padding
        ([150, 200, 400], True),
        ([1, 2, 3, 4, 5, 6], False),  # more rows than were captured
    ],
)
def test_which_steps_are_replayed(starts: list[int], replayed: bool) -> None:
    replaying, before = graphs(), graphs().replayed
    blocks = [range(20 * i, 20 * i + 200) for i in range(len(starts))]
    chunks = [Chunk([i + 1], s, blocks[i], range(1)) for i, s in enumerate(starts)]
    assert replaying.forward(chunks).shape == (len(starts), 64)
    assert replaying.replayed - before == replayed


def test_prefill_and_tokens_without_wanted_logits_run_as_they_are() -> None:
    replaying, before = graphs(), graphs().replayed
    assert replaying.forward([Chunk([1, 2], 0, [0], range(1, 2)), Chunk([1], 0, [1], range(1))]).shape == (2, 64)
    assert replaying.forward([Chunk([1], 2, [0], range(0)), Chunk([1], 1, [1], range(1))]).shape == (1, 64)
    assert replaying.replayed == before


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_a_full_step_has_all_rows_their_own_blocks_and_the_longest_table(rows: int, blocks: int, cache: int) -> None:
    chunks = full_step(Shape(rows, blocks), SIZE, cache)
    own = [block for chunk in chunks for block in chunk.blocks]
    assert len(chunks) == min(rows, cache) and len(set(own)) == len(own) and max(own) < cache
    assert max(len(chunk.blocks) for chunk in chunks) == (blocks if rows * blocks <= cache else max(1, cache // rows))
    assert all(chunk.start // SIZE + 1 == len(chunk.blocks) <= blocks for chunk in chunks)
    assert any(chunk.start % SIZE == 0 for chunk in chunks)


@pytest.mark.parametrize("broken", range(len(SHAPES)))
def test_a_single_wrong_recording_is_found_whichever_it_is(broken: int) -> None:
    wrong = SHAPES[broken]

    def capture(launch: Launch) -> Launch:
        is_wrong = launch.args == (wrong,)  # type: ignore[attr-defined]
        return (lambda: None) if is_wrong else tape(launch)

    with pytest.raises(
        ModelError, match=rf"replayed decode steps (of {wrong.rows} rows of {wrong.blocks} blocks )?give"
    ):
        DecodeGraphs(runner(), SHAPES, capture)


def test_a_recording_that_is_wrong_in_its_last_row_alone_is_found() -> None:
    def capture(launch: Launch) -> Launch:
        replay, logits = tape(launch), launch.func.__self__._logits  # type: ignore[attr-defined]
        (shape,) = launch.args  # type: ignore[attr-defined]

        def replayed() -> None:
            replay()
            logits[shape.rows - 1] *= 1.01 if shape == Shape(5, 128) else 1

        return replayed

    with pytest.raises(ModelError, match=r"of 5 rows of 128 blocks give logits that differ by 1\.0%"):
        DecodeGraphs(runner(), SHAPES, capture)


def test_what_is_captured_is_measured() -> None:
    free = iter([1000, 900])
    made = try_capture(runner(), [Shape(1, 64)], tape, lambda: next(free))
    assert made.graphs is not None
    assert (len(made.graphs), made.nbytes, made.note) == (1, 100, None)


@pytest.mark.parametrize(
    ("family", "capture", "why"),
    [
        ("llama, waiting for its device", tape, "RuntimeError: operation not permitted when stream is capturing"),
        ("llama", lambda launch: lambda: None, "ModelError: replayed decode steps give logits that differ by"),
    ],
)
def test_where_capturing_fails_the_log_and_a_note_say_so_once(
    family: str, capture: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = try_capture(eager := runner(family), [Shape(2, 64), Shape(1, 64)], capture, lambda: 0)
    assert made.graphs is None
    assert made.note is not None and "without CUDA graphs" in made.note and why in made.note
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    eager.verify()


@pytest.mark.parametrize(("device", "wanted", "asked"), [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_only_a_gpu_is_asked_and_only_if_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: bool, asked: int
) -> None:
    calls: list[list[Shape]] = []

    def failing(model: Any, runner: GenericRunner, steps: list[Shape]) -> Captured:
        calls.append(steps)
        return Captured(note="no")

    monkeypatch.setattr(assemble.cuda_graphs, "capture_on_cuda", failing)
    config = EngineConfig("m", max_num_seqs=2, block_size=SIZE, cuda_graphs=wanted)
    stand_in, room = SimpleNamespace(device=torch.device(device)), Capacity(CONTEXT, BLOCKS * SIZE)
    made = assemble._decode_graphs(config, stand_in, runner(), room)
    assert made == (Captured(note="no") if asked else Captured())
    assert calls == [[(2, 128), (2, 64), (1, 256), (1, 128), (1, 64)]] * asked
