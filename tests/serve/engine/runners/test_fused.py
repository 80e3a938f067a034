"""The fused runner: as close to the truth as transformers is in the same precision, and to the last bit one answer."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import fused_models
import pytest
import torch
from fused_models import FAMILIES, FORMS, POSITIONS, VOCABULARY
from torch import Tensor

from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.choice import choose
from twofour.serve.engine.runners.fused import FusedRunner
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.kernels.cpu import extension
from twofour.serve.model.dense_int8 import int8_linears
from twofour.serve.model.loading import load_model

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
ISAS = ("avx2", "avx512", "avx512bf16")
BLOCKS, SIZE = 50, 16
TOKENS = [(37 * i * i + 11 * i + 5) % VOCABULARY for i in range(150)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fused(model: Any, blocks: int = BLOCKS, positions: int = POSITIONS) -> FusedRunner:
    runner, _ = choose(model, "auto", SIZE).build(blocks, SIZE, positions)
    assert isinstance(runner, FusedRunner)
    return runner


def runner(family: str = "llama", form: str = "2:4") -> FusedRunner:
    return fused(fused_models.models(family, form)[0])


def whole(tokens: Sequence[int] = TOKENS, blocks: Sequence[int] = range(10), start: int = 0) -> Chunk:
    return Chunk(tokens, start, blocks, range(len(tokens)), len(tokens))


def pieces(cuts: Sequence[int], blocks: Sequence[int] = range(10)) -> list[Chunk]:
    return [whole(TOKENS[start:stop], blocks, start) for start, stop in pairwise(cuts)]


def own(model: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([TOKENS])).logits[0].float()
    return logits


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_further_from_float32_than_transformers_in_bfloat16(family: str, form: str, isa: str) -> None:
    model, in_bf16, in_f32 = fused_models.models(family, form)
    if family.endswith("ragged columns") and form in ("dense", "mixed"):
        return  # the dense kernel reads whole blocks of columns: test_what_does_not_fit
    exact, found = own(in_f32), fused(model).forward([whole()])
    assert error(found, exact) < 1.05 * error(own(in_bf16), exact)


def test_as_often_the_likeliest_token_as_transformers_in_bfloat16(isa: str) -> None:
    ours = theirs = 0
    for family in list(FAMILIES)[:-1]:
        model, in_bf16, in_f32 = fused_models.models(family, "2:4")
        best = own(in_f32).argmax(1)
        ours += int((fused(model).forward([whole()]).argmax(1) == best).sum())
        theirs += int((own(in_bf16).argmax(1) == best).sum())
    assert ours > 0.99 * theirs, "of 1,050, of which those differ whose logits are as good as equal"


@pytest.mark.parametrize("family", FAMILIES)
def test_any_chunks_give_the_same_bits(family: str, isa: str) -> None:
    form = "2:4" if family.endswith("ragged columns") else "mixed"
    expected = runner(family, form).forward([whole()])
    for step in (1, 2, 3, 5, 8, 64):
        one = runner(family, form)
        found = [one.forward([chunk]) for chunk in pieces([*range(0, 150, step), 150], range(39, 29, -1))]
        assert torch.equal(torch.cat(found), expected), step


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_gives_each_the_bits_it_has_alone(form: str, isa: str) -> None:
    lengths = (3, 31, 32, 33, 70, 1, 130, 17)
    prompts = [TOKENS[length:] + TOKENS[:length] for length in lengths]
    one, blocks = runner(form=form), [range(5 * i, 5 * i + 5) for i in range(8)]
    alone = []
    for prompt, length in zip(prompts, lengths, strict=True):
        logits = one.forward([whole(prompt[: length + 1], range(10))])
        alone.append(logits[-1])
    for i, length in enumerate(lengths):
        one.forward([whole(prompts[i][:length], blocks[i] if length < 80 else range(40, 50))])
    for count in (1, 2, 3, 5, 8):
        at = [i for i in range(8) if lengths[i] < 80 or count == 8][:count]
        held = [blocks[i] if lengths[i] < 80 else range(40, 50) for i in at]
        chunks = [Chunk([prompts[i][lengths[i]]], lengths[i], own, range(1)) for i, own in zip(at, held, strict=True)]
        found = one.forward(chunks)
        assert torch.equal(found, torch.stack([alone[i] for i in at])), count


def test_decodes_beside_a_prompt(isa: str) -> None:
    one = runner()
    expected = one.forward([whole()])
    one.forward([whole(TOKENS[:99], range(10, 20))])
    mixed = one.forward([whole(TOKENS[:99], range(20, 30)), Chunk([TOKENS[99]], 99, range(10, 20), range(1))])
    assert torch.equal(mixed, expected[:100])


def test_threads_give_the_same_bits(isa: str) -> None:
    expected = runner(form="mixed").forward([whole()])
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        one = runner(form="mixed")
        assert torch.equal(torch.cat([one.forward([chunk]) for chunk in pieces([0, 1, 3, 70, 150])]), expected)
    torch.set_num_threads(1)  # fewer than the runner has worked with
    assert torch.equal(one.forward([whole()]), expected)


def test_nothing_of_what_another_has_left_is_seen(isa: str) -> None:
    one, clean = runner("mistral, window"), runner("mistral, window")
    with torch.inference_mode():
        one._step_model.cache.fill_(torch.nan)
    for chunk in pieces([0, 5, 6, 7, 150]):
        assert torch.equal(one.forward([chunk]), clean.forward([chunk]))


def test_a_prefix_that_is_there_is_as_good_as_computed() -> None:
    one = runner()
    expected = one.forward([whole(TOKENS)])
    shared = [*range(4), *range(20, 26)]
    assert torch.equal(one.forward([whole(TOKENS[64:], shared, 64)]), expected[64:])


def test_only_wanted_rows_and_the_best_of_each(isa: str) -> None:
    one = runner(form="mixed")
    logits = one.forward([whole()])
    assert one.best == logits.float().argmax(1).tolist()
    chunks = [Chunk(TOKENS[:100], 0, range(10), range(98, 100), 100), Chunk(TOKENS, 0, range(10, 20), range(3, 9), 150)]
    assert torch.equal(one.forward(chunks), torch.cat([logits[98:100], logits[3:9]]))
    assert one.forward([Chunk(TOKENS, 0, range(10), range(0), 150)]).shape == (0, VOCABULARY)


def test_infinite_and_missing_numbers_stay_where_they_are() -> None:
    model, _, _ = fused_models.models("llama", "dense")
    one = fused(model)
    bad, row = TOKENS[3], model.model.embed_tokens.weight[TOKENS[3]].clone()
    expected = one.forward([whole(TOKENS[50:60])])
    model.model.embed_tokens.weight[bad] = torch.nan
    found = one.forward([whole(TOKENS[:10]), whole(TOKENS[50:60], range(10, 20))])
    model.model.embed_tokens.weight[bad] = row
    assert found[3:10].isnan().all() and not found[:3].isnan().any()
    assert torch.equal(found[10:], expected)


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (Chunk([], 0, [0], range(0)), "at least one token"),
        (Chunk([VOCABULARY], 0, [0], range(1)), "not in the vocabulary"),
        (Chunk([-1], 0, [0], range(1)), "not in the vocabulary"),
        (Chunk([1], POSITIONS, range(33), range(1)), "beyond the longest"),
        (Chunk([1], -1, [0], range(1)), "beyond the longest"),
        (Chunk([1] * 17, 0, [0], range(1)), "fewer cache blocks"),
        (Chunk([1], 0, [BLOCKS], range(1)), "not in the cache"),
        (Chunk([1], 0, [-1], range(1)), "not in the cache"),
        (Chunk([1], 0, [0], range(2)), "the wanted tokens"),
    ],
)
def test_what_cannot_be_computed_is_an_error(chunk: Chunk, why: str) -> None:
    one = runner()
    expected = one.forward([whole()])
    for chunks in ([chunk], [whole(TOKENS[:5], range(10, 20)), chunk]):
        with pytest.raises(InputError, match=why):
            one.forward(chunks)
    assert torch.equal(one.forward([whole()]), expected)


def test_no_chunks_at_all() -> None:
    with pytest.raises(InputError, match="at least one token"):
        runner().forward([])


def test_up_to_the_last_position() -> None:
    one = fused(fused_models.models("llama", "2:4")[0], blocks=8, positions=128)
    assert one.forward([Chunk(TOKENS[:128], 0, range(8), range(127, 128), 128)]).isfinite().all()
    with pytest.raises(InputError, match="beyond the longest"):
        one.forward([Chunk(TOKENS[:129], 0, range(9), range(1), 129)])


def test_one_copy_of_every_weight() -> None:
    model, _, _ = fused_models.models("llama", "mixed")
    addresses = {linear.choice.kernel.weight.data.data_ptr() for linear in model.modules() if hasattr(linear, "choice")}
    addresses |= {each.kernel.weight.data.data_ptr() for _, each in int8_linears(model) if each.kernel}
    addresses |= {parameter.data_ptr() for parameter in model.parameters()}
    kept = [tensor for tensor in fused(model)._step_model._kept if tensor is not None]
    tables = [tensor for tensor in kept if tensor.shape == (POSITIONS, 32)]  # of the rotation
    assert {tensor.data_ptr() for tensor in kept} - {table.data_ptr() for table in tables} <= addresses


def test_wrong_logits_are_seen_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = fused_models.models("llama", "2:4")
    as_ever = FusedRunner.forward
    monkeypatch.setattr(FusedRunner, "forward", lambda self, chunks: as_ever(self, chunks) * 2)
    one, reason = choose(model, "cpu", SIZE).build(BLOCKS, SIZE, POSITIONS)
    assert isinstance(one, GenericRunner) and reason.startswith("not fused: its logits differ by")
    with pytest.raises(ModelError):
        fused_runner = choose(model, "cpu", SIZE).builds[0](BLOCKS, SIZE, POSITIONS)
        fused_runner.verify()


@pytest.mark.demo
def test_the_demo_model(demo_model_folder: Path) -> None:
    model = load_model(str(demo_model_folder), "cpu", kernels="cpu")
    in_bf16, in_f32 = (
        load_model(str(demo_model_folder), "cpu", dtype, "reference") for dtype in ("bfloat16", "float32")
    )
    exact, found, theirs = own(in_f32), fused(model).forward([whole()]), own(in_bf16)
    assert error(found, exact) < 1.2 * error(theirs, exact)  # of one prompt; over many they are equal
    assert int((found.argmax(1) == exact.argmax(1)).sum()) >= int((theirs.argmax(1) == exact.argmax(1)).sum()) - 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_on_one_thread() -> None:
    """libgomp's threads do not survive it: the child computes alone, and asks torch for nothing that would wait."""
    torch.set_num_threads(2)
    one = runner()
    one.forward([whole()])
    expected = one.best
    if (child := os.fork()) == 0:
        signal.alarm(30)
        one.forward([whole(TOKENS, range(20, 30))])
        os._exit(0 if one.best == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_calls_from_several_threads_wait_for_each_other() -> None:
    one = runner()
    expected = one.forward([whole()])
    blocks = [range(10 * i, 10 * i + 10) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda own: one.forward([whole(TOKENS, own)]), blocks * 3))
    assert all(torch.equal(each, expected) for each in found)


def test_stopped_and_continued() -> None:
    torch.set_num_threads(2)
    one = runner()
    expected = one.forward([whole()])
    halting = "import os, signal, sys, time\nfor _ in range(20):\n  for s in (signal.SIGSTOP, signal.SIGCONT):\n"
    halting += "    os.kill(int(sys.argv[1]), s)\n    time.sleep(0.01)\n"
    other = subprocess.Popen([sys.executable, "-c", halting, str(os.getpid())])
    while other.poll() is None:
        assert torch.equal(one.forward([whole()]), expected)
    assert other.returncode == 0
