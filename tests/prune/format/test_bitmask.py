"""The old forms: what is read of them, and everything that is refused before it is expanded.

They are written here bit by bit. Where compressed-tensors itself is installed, in a version that still writes them, it
is asked as well: `pip install --no-deps --target DIR compressed-tensors==0.9.4`, and DIR in TWOFOUR_OLD_TENSORS.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from twofour import cli
from twofour.prune.errors import CheckpointError, PatternError, TwofourError
from twofour.prune.format import Format, checkpoint
from twofour.prune.format.bitmask import PARTS, agreed_shape, expand
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_config, read_json, write_json
from twofour.prune.format.packed import pack
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.model.loading import load_model

NAME = "model.layers.1.mlp.up_proj"
DENSE = "model.layers.1.mlp.down_proj"
CONFIG = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}


def compressed(weight: Tensor) -> dict[str, Tensor]:
    """Make the old form of a 2:4 weight, bit by bit. Exactly two of four are kept, zeros too."""
    rows, columns = weight.shape
    bitmask = torch.zeros(rows, -(-columns // 8), dtype=torch.uint8)
    values = []
    for row in range(rows):
        for group in range(0, columns, 4):
            order = sorted(range(group, group + 4), key=lambda column: bool(weight[row, column] == 0))
            for column in sorted(order[:2]):
                bitmask[row, column // 8] |= 1 << column % 8
                values.append(weight[row, column])
    half = torch.stack(values).view(rows, columns // 2)
    return {"compressed": half, "bitmask": bitmask, "shape": torch.tensor([[rows], [columns]])}


def older(tensor: Tensor) -> dict[str, Tensor]:
    """Make the sparse-bitmask of a tensor of one or two dimensions: what is not zero, in a row."""
    flat = tensor.view(-1, tensor.shape[-1])
    bitmask = torch.zeros(flat.shape[0], -(-flat.shape[1] // 8), dtype=torch.uint8)
    for row, column in (flat != 0).nonzero().tolist():
        bitmask[row, column // 8] |= 1 << column % 8
    counts = (flat != 0).sum(-1)
    return {
        "compressed": flat[flat != 0],
        "bitmask": bitmask.view(*tensor.shape[:-1], -1),
        "shape": torch.tensor(tensor.shape),
        "row_offsets": (counts.cumsum(0) - counts).view(tensor.shape[:-1]),
    }


def expanded(parts: dict[str, Tensor]) -> Tensor:
    values, bits, said = parts["compressed"], parts["bitmask"], parts["shape"].flatten().tolist()
    is_half = "row_offsets" not in parts
    return expand(values, bits, agreed_shape(said, tuple(values.shape), tuple(bits.shape), "weight", is_half))


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_what_they_packed_is_what_we_pack(rows: int, groups: int, seed: int, zeros: float, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = magnitude(torch.randn(rows, 4 * groups, generator=random))
    weight[torch.rand(weight.shape, generator=random) < zeros] = 0
    weight = weight.to(dtype)
    assert torch.equal(expanded(compressed(weight)), weight) and torch.equal(expanded(older(weight)), weight)
    assert torch.equal(pack(expanded(compressed(weight))).unpack(), weight)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("shape", torch.tensor([[2**21], [2**20]])),
        ("shape", torch.tensor([[-2], [-8]])),
        ("shape", torch.tensor([[2.0], [float("inf")]])),
        ("shape", torch.tensor(2)),
        ("shape", torch.tensor([], dtype=torch.int64)),
        ("shape", torch.tensor([1, 2, 8])),
        ("bitmask", torch.zeros(2, 1, dtype=torch.uint8)),  # bits are missing
        ("bitmask", torch.zeros(2, 2, dtype=torch.uint8)),
        ("bitmask", torch.full((2, 1), 0x55, dtype=torch.int8)),
        ("compressed", torch.ones(7)),
        ("compressed", torch.ones(1, 8)),
        ("compressed", torch.ones(0, 4)),
    ],
)
@pytest.mark.parametrize("form", [compressed, older])
def test_sizes_that_contradict_each_other_make_nothing(
    form: Callable[[Tensor], dict[str, Tensor]], part: str, tensor: Tensor
) -> None:
    parts = form(torch.tensor([[1.0, 2, 0, 0, 3, 4, 0, 0], [0, 0, 5, 6, 0, 0, 7, 8]]))
    with pytest.raises(CheckpointError, match="take an intact copy"):
        expanded(parts | {part: tensor})


Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def is_pruned(name: str) -> bool:
    return name.endswith("proj.weight") and DENSE not in name


def old(source: Path, folder: Path, prefix: str = "", change: Change = lambda config, tensors: None) -> Path:
    """Write a model as sparse-24-bitmask, its last linear dense."""
    shutil.copytree(source, folder)
    tensors, config = load_file(folder / "model.safetensors"), read_config(folder)
    for name in [name for name in tensors if is_pruned(name)]:
        base, parts = name.removesuffix("weight"), compressed(magnitude(tensors.pop(name)))
        tensors |= {f"{base}{prefix}{part}": tensor for part, tensor in parts.items()}
    config["quantization_config"] = CONFIG
    change(config, tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    return folder


def zeros(source: Path, folder: Path) -> Path:
    """Write a model with the zeros of 2:4 in its file, its last linear dense."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    pruned = {name: magnitude(weight) if is_pruned(name) else weight for name, weight in tensors.items()}
    save_file(pruned, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def bitmasked(source: Path, folder: Path, *, wholly: bool) -> Path:
    """Write a model as sparse-bitmask: every tensor, or linears alone as later versions did."""
    zeros(source, folder)
    tensors, stored = load_file(folder / "model.safetensors"), {}
    for name, tensor in tensors.items():
        if wholly or is_pruned(name):
            base = name if wholly else name.removesuffix(".weight")
            stored |= {f"{base}.{part}": part_of for part, part_of in older(tensor).items()}
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    sparsity = {"format": "sparse-bitmask", "sparsity_structure": "2:4"}
    config = read_config(folder) | {"compression_config": {"sparsity_config": sparsity}}
    write_json(folder / "config.json", config)
    return folder


def require_same(source: Path, out: Path) -> None:
    """Raise AssertionError unless out, which is dense, is the source with all but its last linear made 2:4."""
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], magnitude(weight) if is_pruned(name) else weight)


@pytest.mark.parametrize("prefix", ["", "weight."])
@pytest.mark.parametrize("to", ["packed", "dense"])
def test_both_ways_to_name_it_are_read(tiny_model_folder: Path, tmp_path: Path, prefix: str, to: Format) -> None:
    convert(old(tiny_model_folder, tmp_path / "old", prefix), tmp_path / to, to)
    if to == "packed":
        convert(tmp_path / "packed", tmp_path / "dense", "dense")
    report, label = check(tmp_path / to), read_json(tmp_path / to / MANIFEST)
    assert report.ok and report.dense == [DENSE] == list(label["dense"])
    assert label["converted_from"] == "sparse-24-bitmask" and label["values"] == {"dtype": "bfloat16"}
    assert label["source"]["name"] == "old" and label["quality"] == {}
    require_same(tiny_model_folder, tmp_path / "dense")


@pytest.mark.parametrize("form", ["zeros", "bitmask", "whole bitmask"])
def test_forms_that_do_not_say_what_is_2_of_4(tiny_model_folder: Path, tmp_path: Path, form: str) -> None:
    """Up to November 2024 2:4 models were published so: what is not 2:4 stays dense, and the label says it."""
    folder = tmp_path / "old"
    if form == "zeros":
        zeros(tiny_model_folder, folder)
    else:
        bitmasked(tiny_model_folder, folder, wholly=form == "whole bitmask")
    convert(folder, tmp_path / "packed", "packed")
    convert(tmp_path / "packed", tmp_path / "dense", "dense")
    report, label = check(tmp_path / "packed"), read_json(tmp_path / "packed" / MANIFEST)
    assert report.ok and label["dense"] == {DENSE: "not 2:4 in what this was converted from"}
    assert label["converted_from"] == ("dense with zeros" if form == "zeros" else "sparse-bitmask")
    require_same(tiny_model_folder, tmp_path / "dense")


def test_what_was_converted_is_served_as_its_zeros_are(tiny_model_folder: Path, tmp_path: Path) -> None:
    convert(old(tiny_model_folder, tmp_path / "old"), tmp_path / "packed", "packed")
    convert(tmp_path / "old", tmp_path / "dense", "dense")
    ours = load_model(str(tmp_path / "packed"), device="cpu", kernels="reference")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_lm_head_is_expanded_and_stays_dense(tiny_float32_folder: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        parts = compressed(magnitude(tensors.pop("lm_head.weight")))
        tensors |= {f"lm_head.{part}": tensor for part, tensor in parts.items()}

    convert(old(tiny_float32_folder, tmp_path / "old", change=change), tmp_path / "out", "packed")
    with checkpoint.Weights(tiny_float32_folder) as before, checkpoint.Weights(tmp_path / "out") as after:
        assert torch.equal(after["lm_head.weight"], magnitude(before["lm_head.weight"]))
    assert check(tmp_path / "out").ok


def test_shards_and_float16_under_a_config_that_names_another_dtype(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = old(tiny_model_folder, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    checkpoint.write_weights(folder, tensors.items(), "dense", shard_bytes=20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    convert(folder, tmp_path / "out", "packed")
    config = read_config(tmp_path / "out")
    assert check(tmp_path / "out").ok
    assert config["dtype"] == "float16" == config["quantization_config"]["values_dtype"]


def test_the_command_says_what_is_not_known(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = old(tiny_model_folder, tmp_path / "old")
    (folder / "README.md").write_text("What its makers say.")
    assert cli.main(["convert", str(folder), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "packed, 13 linears 2:4, 1 left dense" in printed and "quality: not known here" in printed
    assert (tmp_path / "out" / "README.md").read_text() == "What its makers say."
    text = tmp_path / "text"
    text.write_text("A sentence to be judged on. " * 40)
    words = ["eval", str(tmp_path / "out"), "--baseline", str(tiny_model_folder), "--text", str(text)]
    assert cli.main([*words, "--window", "64", "--label"]) == 0
    assert read_json(tmp_path / "out" / MANIFEST)["quality"]["text"]["kl_nats"] > 0
    assert check(tmp_path / "out").ok
    assert (tmp_path / "out" / "README.md").read_text() == "What its makers say."


def quantised(dtype: torch.dtype) -> Change:
    return lambda _, t: t.update({n: w.to(dtype) for n, w in t.items() if n.endswith("compressed")})


def with_config(**quantization: Any) -> Change:
    return lambda c, _: c.update(quantization_config=quantization)


REFUSED: dict[str, tuple[Change, str]] = {
    "int8": (quantised(torch.int8), r"the weights are quantised \(\S+\.compressed is I8\)"),
    "fp8": (quantised(torch.float8_e4m3fn), r"the weights are quantised \(\S+\.compressed is F8_E4M3\)"),
    "scales": (lambda _, t: t.update({f"{NAME}.weight_scale": torch.ones(96, 1)}), "quantised .*weight_scale"),
    "marlin-24": (lambda _, t: t.update({f"{NAME}.scale_packed": torch.ones(96, 1)}), "quantised .*scale_packed"),
    "groups": (
        lambda c, _: c.update(compression_config={"config_groups": {"group_0": {}}, "format": "int-quantized"}),
        "compression_config of config.json, compressed-tensors, format int-quantized",
    ),
    "another method": (with_config(quant_method="gptq", bits=4), "quantization_config of config.json, gptq"),
    "another format": (
        with_config(quant_method="compressed-tensors", sparsity_config={"format": "sparse-48-bitmask"}),
        "sparse-48-bitmask by config.json, read are dense, sparse-24-bitmask",
    ),
    "both": (lambda _, t: t.update({f"{NAME}.weight": torch.ones(96, 64)}), f"{NAME}.weight is stored twice"),
    "hostile shape": (
        lambda _, t: t.update({f"{NAME}.shape": torch.tensor([[2**21], [2**20]])}),
        rf"{NAME} is \[2097152, 1048576\] by its shape, but its values are \[96, 32\]",
    ),
    "by two names": (
        lambda _, t: t.update({f"{NAME}.weight.{part}": t[f"{NAME}.{part}"] + 0 for part in PARTS}),
        rf"{NAME}(\.weight)? is stored twice by a bitmask",
    ),
    "a shape of many": (lambda _, t: t.update({f"{NAME}.shape": torch.ones(9)}), f"{NAME}.shape is no shape"),
    "missing": (lambda _, t: t.pop(f"{NAME}.shape"), f"{NAME} lacks one of compressed, bitmask, shape"),
    "missing bits": (lambda _, t: t.pop(f"{NAME}.bitmask"), rf"{NAME}\.weight is missing"),
    "wrong bits": (
        lambda _, t: t.update({f"{NAME}.bitmask": torch.full((96, 8), 0x15, dtype=torch.uint8)}),
        f"the bitmask of {NAME} does not fit its values",
    ),
    "not finite": (lambda _, t: t[f"{NAME}.compressed"].fill_(float("nan")), f"{NAME}.weight holds NaN"),
    "norm not finite": (lambda _, t: t["model.norm.weight"].fill_(float("inf")), r"model\.norm\.weight holds NaN"),
    "another shape": (lambda c, _: c.update(intermediate_size=100), "by config.json it"),
    "another model": (
        lambda c, _: c.update(num_hidden_layers=1),
        r"model\.layers\.1\.\S+ is stored by a bitmask, but not in config",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("to", ["packed", "dense"])
def test_what_is_refused(tiny_model_folder: Path, tmp_path: Path, case: str, to: Format) -> None:
    change, message = REFUSED[case]
    folder = old(tiny_model_folder, tmp_path / "old", change=change)
    with pytest.raises(TwofourError, match=message):
        convert(folder, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_half_of_the_weights_is_not_yet_2_of_4(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The numbers of values and bits fit, a group keeps four."""

    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[f"{NAME}.bitmask"][0, 0] = 0x0F
        tensors[f"{NAME}.compressed"].fill_(1)

    with pytest.raises(PatternError, match=f"{NAME} is not 2:4 at row 0, columns 0-3"):
        convert(old(tiny_model_folder, tmp_path / "old", change=change), tmp_path / "out", "dense")


THEIRS = """
import sys
sys.path.insert(0, sys.argv[1])
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import SparsityCompressionConfig
from safetensors.torch import load_file, save_file
form, path = sys.argv[2:4]
config = SparsityCompressionConfig.load_from_registry(form, format=form, sparsity_structure="2:4")
tensors = load_file(path)
linears = {name.removesuffix(".weight") for name in tensors if "proj.weight" in name and sys.argv[4] not in name}
compressor = BaseCompressor.load_from_registry(form, config=config)
save_file(dict(compressor.compress(tensors, linears)), path, metadata={"format": "pt"})
"""


@pytest.mark.slow
@pytest.mark.skipif("TWOFOUR_OLD_TENSORS" not in os.environ, reason="no old compressed-tensors")
@pytest.mark.parametrize("form", ["sparse-24-bitmask", "sparse-bitmask"])
def test_what_compressed_tensors_itself_writes(tiny_model_folder: Path, tmp_path: Path, form: str) -> None:
    folder = zeros(tiny_model_folder, tmp_path / "old")
    where = os.environ["TWOFOUR_OLD_TENSORS"]
    words = [sys.executable, "-c", THEIRS, where, form, str(folder / "model.safetensors"), DENSE]
    subprocess.run(words, check=True, capture_output=True)
    with checkpoint.Weights(folder) as weights:
        assert sum(name.endswith(".bitmask") for name in weights) == 13
    config = read_config(folder) | {"quantization_config": CONFIG | {"sparsity_config": {"format": form}}}
    write_json(folder / "config.json", config)
    convert(folder, tmp_path / "packed", "packed")
    convert(tmp_path / "packed", tmp_path / "dense", "dense")
    assert check(tmp_path / "packed").ok
    require_same(tiny_model_folder, tmp_path / "dense")
