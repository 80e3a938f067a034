"""A dense linear in int8, against the product with the weight that was rounded by hand."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from twofour.prune.errors import InputError, NonFiniteError
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.serve.kernels import cpu
from twofour.serve.model.dense_int8 import Int8Linear, int8_linears, require_known, round_linears
from twofour.serve.model.loading import load_model, weight_report

ours = pytest.mark.skipif(cpu.available().startswith("none"), reason=cpu.available())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24, 128), (13, 72)])
def test_it_multiplies_by_the_rounded_weight(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    rows, columns = shape
    linear = nn.Linear(columns, rows, bias).to(torch.bfloat16)
    x = torch.randn(3, 2, columns).bfloat16()
    rounded = Int8Linear.from_linear(linear)
    assert (rounded.in_features, rounded.out_features) == (columns, rows)
    packed = to_dense_int8(linear.weight)
    expected = x.double() @ packed.unpack().double().T + (linear.bias.double() if bias else 0)
    for module in (rounded, Int8Linear.from_int8(packed, linear.bias, torch.bfloat16)):
        with torch.inference_mode():
            y = module(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_weight_that_is_not_finite_is_named() -> None:
    linear = nn.Linear(64, 8)
    nn.init.constant_(linear.weight, float("inf"))
    with pytest.raises(NonFiniteError, match="lm_head"):
        Int8Linear.from_linear(linear, "lm_head")


@ours
def test_all_numbers_of_tokens_give_the_same_bits() -> None:
    rounded = Int8Linear.from_linear(nn.Linear(192, 40).to(torch.bfloat16))
    x = torch.randn(300, 192).bfloat16()
    with torch.inference_mode():
        assert torch.equal(rounded(x), torch.cat([rounded(row) for row in x.split(1)]))


def test_a_pinned_kernel_that_takes_no_dense_weight_expands() -> None:
    linear, x = nn.Linear(128, 24).to(torch.bfloat16), torch.randn(3, 128).bfloat16()
    expanded = Int8Linear.from_linear(linear, kernels="reference")
    assert expanded.kernel is None and expanded.nbytes == linear.weight.nbytes
    weight = to_dense_int8(linear.weight).unpack().bfloat16()
    assert torch.equal(expanded(x), functional.linear(x, weight, linear.bias))


@ours
def test_it_moves_and_copies() -> None:
    rounded = Int8Linear.from_linear(nn.Linear(128, 24).to(torch.bfloat16))
    x = torch.randn(3, 128).bfloat16()
    assert torch.equal(copy.deepcopy(rounded)(x), rounded(x))
    for dtype in (torch.float16, torch.float32):
        moved = copy.deepcopy(rounded).to(dtype)
        assert moved.kernel and moved(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(moved(x.to(dtype)).bfloat16(), rounded(x), rtol=0.02, atol=0.02)
    away = copy.deepcopy(rounded).to("meta")
    assert away.kernel is None and away(x.to("meta")).shape == (3, 24)


@pytest.mark.parametrize(
    ("options", "head", "others"),
    [
        ({"lm_head": "int8"}, "int8", "bfloat16"),
        ({"dense_values": "int8"}, "bfloat16", "int8"),
        ({"lm_head": "int8", "dense_values": "int8"}, "int8", "int8"),
    ],
)
def test_what_is_asked_for_is_rounded_and_said(
    tiny_model_folder: Path, options: dict[str, str], head: str, others: str
) -> None:
    plain, rounded = (load_model(str(tiny_model_folder), "cpu", **each) for each in (dict[str, str](), options))
    report = weight_report(rounded)
    assert (report.head_values, report.dense_values) == (head, others)
    assert [("lm_head" in note, "14 dense linears" in note) for note in report.notes] == [
        *([(True, False)] if head == "int8" else []),
        *([(False, True)] if others == "int8" else []),
    ]
    assert torch.equal(rounded.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        found, exact = (model(ids).logits.float() for model in (rounded, plain))
    assert not torch.equal(found, exact) and (found - exact).norm() < 0.03 * exact.norm()


@ours
def test_bytes_are_those_that_are_held(tiny_model_folder: Path) -> None:
    options = ({}, {"lm_head": "int8"}, {"dense_values": "int8"})
    plain, head, others = (weight_report(load_model(str(tiny_model_folder), "cpu", **each)) for each in options)
    assert head.weight_bytes == plain.weight_bytes + 320 * 64 * 17 // 16  # the embeddings it was tied to stay
    assert head.linear_bytes == plain.linear_bytes
    held = sum(each.nbytes for _, each in int8_linears(load_model(str(tiny_model_folder), "cpu", dense_values="int8")))
    assert others.linear_bytes == held < 0.6 * plain.linear_bytes
    assert others.weight_bytes - others.linear_bytes == plain.weight_bytes - plain.linear_bytes
    assert others.kernels == {"dense int8": 14}


def test_2_to_4_linears_are_not_touched(tiny_pruned_folder: Path) -> None:
    model = load_model(str(tiny_pruned_folder), "cpu", lm_head="int8", dense_values="int8")
    assert [name for name, _ in int8_linears(model)] == ["lm_head"]


def test_expanded_is_said(tiny_model_folder: Path) -> None:
    report = weight_report(load_model(str(tiny_model_folder), "cpu", kernels="reference", dense_values="int8"))
    assert "14 dense linears in int8 are expanded" in report.notes[-1] and report.kernels == {"torch": 14}


def test_what_cannot_be_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="lm_head is 'int4'"):
        load_model(str(tiny_model_folder), "cpu", lm_head="int4")
    with pytest.raises(InputError, match="built for CPUs"):
        require_known(None, "int8", torch.device("cuda:0"))
    with pytest.raises(InputError, match="no lm_head"):
        round_linears(nn.Linear(64, 8), "int8", None, "auto")


def test_what_was_rounded_at_load_is_not_saved(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model_folder), "cpu", lm_head="int8")
    with pytest.raises(InputError, match=r"lm_head\.weight was rounded"):
        model.save_pretrained(tmp_path / "out")
