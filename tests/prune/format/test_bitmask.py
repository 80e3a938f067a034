"""The old form: what is read of it, and everything that is refused before it is expanded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofour.prune.errors import CheckpointError, PatternError, TwofourError
from twofour.prune.format import Format
from twofour.prune.format.bitmask import expand
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_config, read_json, write_json
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.prune.solving.magnitude import magnitude

NAME = "model.layers.1.mlp.up_proj"
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


@pytest.mark.parametrize("columns", [4, 8, 12, 20])
def test_it_is_expanded(columns: int) -> None:
    weight = magnitude(torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).round())
    assert torch.equal(expand(**compressed(weight)), weight)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("shape", torch.tensor([[2**21], [2**20]])),
        ("shape", torch.tensor([[-2], [-8]])),
        ("shape", torch.tensor([[2.0], [float("inf")]])),
        ("shape", torch.tensor(2)),
        ("bitmask", torch.zeros(2, 1, dtype=torch.uint8)),  # bits are missing
        ("bitmask", torch.zeros(2, 2, dtype=torch.uint8)),
        ("bitmask", torch.full((2, 1), 0x55, dtype=torch.int8)),
        ("compressed", torch.ones(8)),
        ("compressed", torch.ones(1, 8)),
        ("compressed", torch.ones(0, 4)),
    ],
)
def test_sizes_that_contradict_each_other_make_nothing(part: str, tensor: Tensor) -> None:
    parts = compressed(torch.tensor([[1.0, 2, 0, 0, 3, 4, 0, 0], [0, 0, 5, 6, 0, 0, 7, 8]]))
    with pytest.raises(CheckpointError, match="take an intact copy"):
        expand(**(parts | {part: tensor}))


Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def old(source: Path, folder: Path, prefix: str = "", change: Change = lambda config, tensors: None) -> Path:
    """Write a model in the old form, its last linear dense."""
    shutil.copytree(source, folder)
    tensors, config = load_file(folder / "model.safetensors"), read_config(folder)
    for name in [name for name in tensors if name.endswith("proj.weight") and "1.mlp.down" not in name]:
        base, parts = name.removesuffix("weight"), compressed(magnitude(tensors.pop(name)))
        tensors |= {f"{base}{prefix}{part}": tensor for part, tensor in parts.items()}
    config["quantization_config"] = CONFIG
    change(config, tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("prefix", ["", "weight."])
@pytest.mark.parametrize("to", ["packed", "dense"])
def test_both_ways_to_name_it_are_read(tiny_model_folder: Path, tmp_path: Path, prefix: str, to: Format) -> None:
    convert(old(tiny_model_folder, tmp_path / "old", prefix), tmp_path / to, to)
    if to == "packed":
        convert(tmp_path / "packed", tmp_path / "dense", "dense")
    report, label = check(tmp_path / to), read_json(tmp_path / to / MANIFEST)
    assert report.ok and report.dense == ["model.layers.1.mlp.down_proj"] == list(label["dense"])
    assert label["converted_from"] == "sparse-24-bitmask" and label["values"] == {"dtype": "bfloat16"}
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model_folder, tmp_path / "dense"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        pruned = name.endswith("proj.weight") and "1.mlp.down" not in name
        assert torch.equal(after[name], magnitude(weight) if pruned else weight)


REFUSED: dict[str, tuple[Change, str]] = {
    "int8": (
        lambda _, t: t.update({n: w.to(torch.int8) for n, w in t.items() if n.endswith("compressed")}),
        r"quantised besides being 2:4 \(\S+\.compressed is torch\.int8\)",
    ),
    "scales": (lambda _, t: t.update({f"{NAME}.weight_scale": torch.ones(96, 1)}), "quantised besides being 2:4"),
    "groups": (
        lambda c, _: c.update(compression_config={"config_groups": {"group_0": {}}}),
        "config_groups in compression_config",
    ),
    "unstructured": (
        lambda _, t: t.update({f"{NAME}.row_offsets": torch.zeros(96, 1, dtype=torch.int64)}),
        rf"sparse-bitmask, which is not 2:4 \({NAME}\.row_offsets\); decompress",
    ),
    "hostile shape": (
        lambda _, t: t.update({f"{NAME}.shape": torch.tensor([[2**21], [2**20]])}),
        rf"{NAME} is \[2097152, 1048576\] by its shape, but its values are \[96, 32\]",
    ),
    "missing": (lambda _, t: t.pop(f"{NAME}.shape"), f"{NAME} lacks one of compressed, bitmask, shape"),
    "another shape": (lambda c, _: c.update(intermediate_size=100), "by config.json it"),
    "another model": (lambda c, _: c.update(num_hidden_layers=1), r"model\.layers\.1\.\S+ has shape .*, not in config"),
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
