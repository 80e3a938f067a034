"""The label of a mixed folder: every contradiction is named, conversions keep or expand it, people can read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_folders import mixed
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import CheckpointError
from twofour.prune.format import checkpoint
from twofour.prune.format.checkpoint import MANIFEST, Weights
from twofour.prune.format.dense_int8 import DenseInt8
from twofour.prune.format.folder import read_config, read_json
from twofour.prune.format.packed import Packed
from twofour.prune.label.card import card
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.prune.label.report import page

BLOCK = "model.layers.0"
INT8 = f"{BLOCK}.self_attn.q_proj"  # dense in int8, with k and v
PLAIN = f"{BLOCK}.self_attn.o_proj"  # 2:4
ROUNDED = f"{BLOCK}.mlp.gate_proj"  # 2:4 in int8, with up
DENSE = f"{BLOCK}.mlp.down_proj"
WEIGHTS = "model.twofour.safetensors"


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return mixed(tiny_model_folder, tmp_path / "mixed")


def faults(folder: Path) -> list[str]:
    """Of the folder with digests that fit."""
    checkpoint.write_manifest(folder, read_json(folder / MANIFEST))
    return check(folder).faults


def test_an_intact_one_has_no_fault_and_its_dense_linears_are_counted(folder: Path) -> None:
    report = check(folder)
    assert report.ok, report.faults
    schemes = read_json(folder / MANIFEST)["schemes"]
    assert report.dense == [name for name, scheme in schemes.items() if scheme.startswith("dense")]
    assert sum(kind.linears for kind in report.kinds.values()) == 14 - len(report.dense)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda q: q["schemes"]["dense-int8"].remove(INT8),
            f"{INT8} is left dense by twofour.json, by config.json",
        ),
        (
            lambda q: q["schemes"]["dense-int8"].remove(INT8),
            f"{INT8} is stored in int8, but config.json",
        ),
        (
            lambda q: q["schemes"]["dense-int8"].append("x"),
            "says that x is dense-int8, which is no linear",
        ),
        (
            lambda q: q["schemes"]["dense-int8"].append(PLAIN),
            f"{PLAIN} must be 2:4 by twofour.json, by",
        ),
        (lambda q: q["schemes"]["2:4-int8"].append(PLAIN), f"{PLAIN} has bfloat16 values, config.json says int8"),
        (lambda q: q["schemes"]["2:4-int8"].remove(ROUNDED), f"{ROUNDED} has int8 values, config.json says bfloat16"),
        (lambda q: q["ignore"].remove(DENSE), "ignores other modules than those that are not packed"),
        (lambda q: q["ignore"].append(PLAIN), f"{PLAIN} must be 2:4 by twofour.json, by config.json it is dense;"),
        (lambda q: q.update(schemes={}), "config.json says schemes {}, not which linears"),
        (lambda q: q.update(format_version=1), "config.json has schemes, but format_version 1"),
        (lambda q: q.pop("scale_columns"), "config.json says scale_columns None"),
    ],
)
def test_a_config_that_contradicts_the_rest(folder: Path, change: Change, words: str) -> None:
    config = read_config(folder)
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    found = faults(folder)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m["schemes"].update({INT8: "dense"}),
            f"{INT8} is 'dense', by config.json it is 'dense-int8'",
        ),
        (lambda m: m["schemes"].pop(PLAIN), f"says that {PLAIN} is None, by config.json it is '2:4'"),
        (lambda m: m["schemes"].update(x="2:4"), "says that x is '2:4', by config.json it is None"),
        (lambda m: m.pop("schemes"), "does not say the schemes of a mixed folder"),
        (lambda m: m.update(schemes=["2:4"]), "says schemes ['2:4'], not that of each linear"),
        (lambda m: m["schemes"].update({INT8: {"a": []}}), f"says that {INT8} is {{'a': []}}"),
        (lambda m: m["shares"]["2:4"].update(bytes=1), "says other shares of the schemes than there are"),
        (lambda m: m.update(shares=[]), "says other shares of the schemes than there are"),
        (lambda m: m.update(format_version=1), "says format_version 1, the folder has 3"),
        (lambda m: m["dense"].pop(INT8), f"{INT8} must be 2:4 by twofour.json, by config.json it is dense-int8"),
        (lambda m: m["dense"].pop(DENSE), f"{DENSE} must be 2:4 by twofour.json, by config.json it is dense;"),
        (
            lambda m: m["linears"].pop(PLAIN),
            f"{PLAIN} belongs to the decoder blocks, but twofour.json",
        ),
        (
            lambda m: (m["linears"].pop(PLAIN), m["dense"].update({PLAIN: "so it says"})),
            f"{PLAIN} is left dense by twofour.json, by config.json it is 2:4",
        ),
    ],
)
def test_a_label_that_contradicts_the_rest(folder: Path, change: Change, words: str) -> None:
    manifest = read_json(folder / MANIFEST)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    found = faults(folder)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{INT8}.int8_scales"), f"{INT8}.int8_scales is missing"),
        (lambda t: t.pop(f"{INT8}.int8_values"), f"{INT8}.int8_values is missing"),
        (lambda t: t.pop(f"{DENSE}.weight"), f"{DENSE}.weight is missing"),
        (lambda t: t.update({f"{INT8}.weight": torch.ones(64, 64)}), f"{INT8} is stored twice, in int8 and as"),
        (lambda t: t.update({f"{INT8}.values": torch.ones(64, 32)}), f"{INT8} is packed, but no linear"),
        (
            lambda t: t.update({"x.int8_values": torch.ones(1, 4).to(torch.int8)}),
            "x is stored in int8, but",
        ),
        (lambda t: t[f"{INT8}.int8_scales"].fill_(torch.inf), f"{INT8} has the scale inf at row 0, number 0"),
        (lambda t: t[f"{INT8}.int8_values"].fill_(-128), f"{INT8} has the value -128 at row 0, column 0"),
        (lambda t: t.update({f"{INT8}.int8_values": t[f"{INT8}.int8_values"][:32].clone()}), f"{INT8} has scales"),
        (
            lambda t: t.update(
                {f"{INT8}.int8_values": torch.zeros(32, 64).to(torch.int8), f"{INT8}.int8_scales": torch.zeros(32, 1)}
            ),
            f"{INT8} has shape [32, 64], by config.json it has [64, 64]",
        ),
        (lambda t: t[f"{DENSE}.weight"].fill_(torch.nan), f"{DENSE}.weight holds NaN"),
    ],
)
def test_tensors_that_contradict_the_rest(folder: Path, change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    found = faults(folder)
    assert any(words in fault for fault in found), found


def test_packed_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "again", "packed")
    assert check(tmp_path / "again").ok and read_config(tmp_path / "again") == read_config(folder)
    with Weights(folder) as before, Weights(tmp_path / "again") as after:
        assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    labels = [read_json(each / MANIFEST) for each in (folder, tmp_path / "again")]
    assert all(labels[0][key] == labels[1][key] for key in ("schemes", "shares", "linears", "dense", "format_version"))


def test_dense_is_all_dequantised_and_says_what_was_int8(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    for each in ("zeros", "again"):
        assert check(tmp_path / each).ok, check(tmp_path / each).faults
    with Weights(folder) as before, Weights(tmp_path / "zeros") as dense:
        int8 = DenseInt8(before[f"{INT8}.int8_values"], before[f"{INT8}.int8_scales"])
        packed = Packed(*(before[f"{ROUNDED}.{part}"] for part in ("values", "positions", "scales")))
        assert torch.equal(dense[f"{INT8}.weight"], int8.unpack().bfloat16())
        assert torch.equal(dense[f"{ROUNDED}.weight"], packed.unpack().bfloat16())
        assert torch.equal(dense[f"{DENSE}.weight"], before[f"{DENSE}.weight"])
        assert {name.rpartition(".")[2] for name in dense} == {"weight"}
    was, now = (read_json(each / MANIFEST) for each in (folder, tmp_path / "again"))
    assert now["format_version"] == read_config(tmp_path / "again")["quantization_config"]["format_version"] == 1
    assert now["schemes_once"] == {name: scheme for name, scheme in was["schemes"].items() if "int8" in scheme}
    assert set(now["schemes"].values()) == {"2:4", "dense"} and now["shares"].keys() == {"2:4", "dense"}


def test_damage_is_not_converted(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{INT8}.int8_values"].fill_(-128)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    checkpoint.write_manifest(folder, read_json(folder / MANIFEST))
    with pytest.raises(CheckpointError, match=r"is not what twofour wrote: .* has the value -128"):
        convert(folder, tmp_path / "out", "dense")


def test_card_and_page_say_what_is_stored_how(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(method="magnitude", keep_dense=("*.layers.1.*",), keep_dense_values="int8")
    manifest = prune(tiny_model_folder, tmp_path / "out", config).manifest
    text, html = card(manifest, "out", "packed"), page(manifest, "out")
    assert "tiny with 7 of the 14 decoder linears pruned to strict 2:4" in text
    sizes = {scheme: share["bytes"] for scheme, share in manifest["shares"].items()}
    assert sizes.keys() == {"2:4", "dense-int8"}
    shares = {scheme: f"7 | 50.0% | {size / sum(sizes.values()):.1%}" for scheme, size in sizes.items()}
    assert all(f"| {scheme} | {share} |" in text for scheme, share in shares.items())
    first, last = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert f"- 7 linears, `{first}` to `{last}` (dense-int8): kept dense, as '*.layers.1.*' asks" in text
    assert "left dense: lm_head, 7 linears of the decoder blocks." in html
    assert "".join(f"<td>{cell}</td>" for cell in ("dense-int8", *shares["dense-int8"].split(" | "))) in html
    convert(tmp_path / "out", tmp_path / "zeros", "dense")
    after = (tmp_path / "zeros" / "README.md").read_text()
    assert "| read back from int8 | 7 linears (dense-int8) |" in after


def test_one_way_of_storing_is_no_table(tiny_model_folder: Path, tmp_path: Path) -> None:
    manifest = prune(tiny_model_folder, tmp_path / "out", PruneConfig(method="magnitude")).manifest
    assert manifest["shares"].keys() == {"2:4"}
    for text in (card(manifest, "out", "packed"), page(manifest, "out")):
        assert "How the decoder blocks are stored" not in text
