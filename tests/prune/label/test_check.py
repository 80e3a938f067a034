"""Every kind of damage is found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twofour.prune.errors import CheckpointError
from twofour.prune.format import Format, checkpoint
from twofour.prune.format.folder import read_json
from twofour.prune.format.packed import pack
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.prune.solving.magnitude import magnitude

Damage = Callable[[dict[str, torch.Tensor]], Any]
NAME = "model.layers.0.self_attn.q_proj"


def damage(folder: Path, change: Damage) -> list[str]:
    """Change stored tensors, with digests that fit: only the tensors themselves can tell."""
    path = folder / "model.twofour.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    manifest = json.loads((folder / "twofour.json").read_text())
    checkpoint.write_manifest(folder, manifest)
    return check(folder).faults


def test_an_intact_folder(tiny_pruned_folder: Path) -> None:
    report = check(tiny_pruned_folder)
    assert report.ok and report.form == "packed"
    assert report.kinds["q_proj"].linears == 2
    assert 0.5 <= report.kinds["down_proj"].sparsity < 0.51


def test_a_corrupt_byte(tiny_pruned_folder: Path) -> None:
    path = tiny_pruned_folder / "model.twofour.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert any(
        "model.twofour.safetensors differs from its digest" in fault for fault in check(tiny_pruned_folder).faults
    )


def test_an_invalid_nibble(tiny_pruned_folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.positions"][3, 1] = 5 | 4 << 4

    (fault,) = damage(tiny_pruned_folder, change)
    assert f"{NAME} has the invalid position nibble 5 at row 3, group 2" in fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{NAME}.positions"), f"{NAME}.positions is missing"),
        (lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"][:8].clone()}), "do not fit together"),
        (lambda t: t[f"{NAME}.values"].fill_(float("nan")), f"{NAME} holds NaN"),
        (lambda t: t.update({"x.values": torch.ones(1)}), "x is packed, but no linear that config.json"),
    ],
)
def test_damaged_tensors(tiny_pruned_folder: Path, change: Damage, words: str) -> None:
    faults = damage(tiny_pruned_folder, change)
    assert any(words in fault for fault in faults), faults


def set_scale(value: float) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.scales"][5, 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{NAME}.scales"), f"{NAME} needs scales exactly if"),
        (set_scale(float("nan")), f"{NAME} has the scale nan at row 5, number 0"),
        (set_scale(float("inf")), f"{NAME} has the scale inf at row 5"),
        (set_scale(-0.5), f"{NAME} has the scale -0.5 at row 5"),
        (
            lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"][:8].clone()}),
            f"{NAME} has scales torch.float32 [8, 1]",
        ),
        (lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"].half()}), f"{NAME} has scales torch.float16"),
        (lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"].half()}), f"{NAME} has float16 values, config.json"),
    ],
)
def test_damaged_scales(tiny_int8_folder: Path, change: Damage, words: str) -> None:
    assert check(tiny_int8_folder).ok
    (fault,) = damage(tiny_int8_folder, change)
    assert words in fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["model.norm.weight"].__setitem__(3, torch.nan), "model.norm.weight holds NaN or infinity; take"),
        (
            lambda t: t["model.embed_tokens.weight"].__setitem__((7, 1), torch.inf),
            "model.embed_tokens.weight holds NaN",
        ),
        (
            lambda t: t["model.layers.1.input_layernorm.weight"].fill_(-torch.inf),
            "model.layers.1.input_layernorm.weight holds NaN",
        ),
        (lambda t: t.update({f"{NAME}.bias": torch.full((64,), torch.nan)}), f"{NAME}.bias holds NaN"),
    ],
)
def test_what_is_not_pruned_is_finite(tiny_pruned_folder: Path, change: Damage, words: str) -> None:
    (fault,) = damage(tiny_pruned_folder, change)
    assert words in fault


HEAD = "lm_head.int8_values"
SCALES = "lm_head.int8_scales"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(HEAD), f"{HEAD} is missing; take an intact copy"),
        (lambda t: t.pop(SCALES), f"{SCALES} is missing; take an intact copy"),
        (lambda t: (t.pop(HEAD), t.pop(SCALES)), f"{HEAD} is missing"),
        (lambda t: t.update({"lm_head.weight": torch.ones(320, 72)}), "stored twice, in int8 and as lm_head.weight"),
        (lambda t: t.update({HEAD: t[HEAD].float()}), "lm_head has values torch.float32 [320, 72], not torch.int8"),
        (
            lambda t: t.update({SCALES: t[SCALES].half()}),
            "lm_head has scales torch.float16 [320, 2], not torch.float32",
        ),
        (lambda t: t.update({SCALES: t[SCALES][:8].clone()}), "lm_head has scales torch.float32 [8, 2], not"),
        (
            lambda t: t.update({HEAD: t[HEAD][:8].clone(), SCALES: t[SCALES][:8].clone()}),
            "by config.json it has [320, 72]",
        ),
        (lambda t: t[SCALES].__setitem__((5, 1), torch.nan), "lm_head has the scale nan at row 5, number 1"),
        (lambda t: t[SCALES].__setitem__((5, 0), -1), "lm_head has the scale -1.0 at row 5, number 0"),
        (lambda t: t[HEAD].__setitem__((9, 7), -128), "lm_head has the value -128 at row 9, column 7"),
        (lambda t: t.update({"embed_out.int8_scales": torch.ones(1)}), "embed_out is stored in int8, but config.json"),
    ],
)
def test_a_damaged_head(tiny_head_folder: Path, change: Damage, words: str) -> None:
    assert check(tiny_head_folder).ok
    faults = damage(tiny_head_folder, change)
    assert words in faults[0], faults
    with pytest.raises(CheckpointError, match="is not what twofour wrote"):
        convert(tiny_head_folder, tiny_head_folder.parent / "out", "packed")


def test_a_head_that_is_not_what_is_said_of_it(tiny_head_folder: Path) -> None:
    """By config.json, or by the label."""
    path = tiny_head_folder / "config.json"
    intact = json.loads(path.read_text())
    quantization = intact["quantization_config"]
    assert (quantization["format_version"], quantization["lm_head"]) == (2, "int8")
    for change, words in (
        ({"format_version": 1}, "config.json says lm_head 'int8', known: (None,); upgrade twofour"),
        ({"lm_head": "int4"}, "config.json says lm_head 'int4', known: ('int8',); upgrade twofour"),
        ({"format_version": 1, "lm_head": None}, "lm_head is stored in int8, but config.json does not say so"),
    ):
        path.write_text(json.dumps(intact | {"quantization_config": quantization | change}))
        faults = relabel(tiny_head_folder, lambda manifest: None)
        assert words in faults[0], faults
    path.write_text(json.dumps(intact))
    for said in (None, "int8", {"dtype": "bfloat16"}):
        (fault,) = relabel(tiny_head_folder, lambda manifest, said=said: manifest.update(lm_head=said))  # type: ignore[misc]
        assert "twofour.json says lm_head" in fault and "config.json says otherwise" in fault


def test_an_unknown_format_is_one_fault_and_its_linears_are_not_read(tiny_pruned_folder: Path) -> None:
    path = tiny_pruned_folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    faults = check(tiny_pruned_folder).faults
    assert len(faults) == 2 and "config.json differs" in faults[0] and "quant_method None" in faults[1]


def relabel(folder: Path, change: Callable[[dict[str, Any]], Any]) -> list[str]:
    """Change the manifest, with digests that fit."""
    manifest = json.loads((folder / "twofour.json").read_text())
    change(manifest)
    checkpoint.write_manifest(folder, manifest)
    return check(folder).faults


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_a_shortened_manifest_hides_no_dense_linear(
    tiny_model_folder: Path, tiny_pruned_folder: Path, tmp_path: Path, form: Format
) -> None:
    """13 of the 14 linears are dense again, and the manifest knows one."""
    folder = tmp_path / "one"
    folder.mkdir()
    with checkpoint.Weights(tiny_model_folder) as weights:
        one = {NAME: pack(magnitude(weights[f"{NAME}.weight"]))}
    checkpoint.write_model(folder, tiny_model_folder, one, form)
    checkpoint.write_manifest(folder, {"linears": {NAME: {"shape": [64, 64]}}})
    faults = check(folder).faults
    assert sum("belongs to the decoder blocks, but twofour.json does not list it" in fault for fault in faults) == 13
    with pytest.raises(CheckpointError, match=r"is not what twofour wrote: .*; and [0-9]+ more"):
        convert(folder, tmp_path / "out", "dense")
    left = [name for name in read_json(tiny_pruned_folder / "twofour.json")["linears"] if name != NAME]
    assert relabel(folder, lambda manifest: manifest.update(dense=dict.fromkeys(left, "on the label"))) == []
    assert sorted(check(folder).dense) == sorted(left)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["linears"][NAME].pop("shape"), f"{NAME} has shape [64, 64], the manifest says None"),
        (lambda m: m["linears"].update({NAME: [64, 64]}), "the manifest says None"),
        (lambda m: m.update(linears=["x"]), "belongs to the decoder blocks"),
        (lambda m: m["linears"].update({"x": {"shape": [4, 4]}}), "twofour.json lists x, which is no linear"),
        (lambda m: m.update(values={"dtype": "int8"}), "says values 'int8', the folder has 'bfloat16'"),
        (lambda m: m.update(pattern="4:8"), "says pattern '4:8', the folder has '2:4'"),
    ],
)
def test_a_manifest_that_contradicts_the_tensors(tiny_pruned_folder: Path, change: Any, words: str) -> None:
    faults = relabel(tiny_pruned_folder, change)
    assert any(words in fault for fault in faults), faults


def test_a_config_that_contradicts_the_tensors(tiny_pruned_folder: Path) -> None:
    path = tiny_pruned_folder / "config.json"
    intact = json.loads(path.read_text())
    quantization = intact["quantization_config"]
    for change, words in (
        ({"dtype": "float32"}, "config.json says float32, but has bfloat16 values"),
        ({"quantization_config": quantization | {"ignore": [NAME]}}, "config.json ignores other modules than"),
        ({"quantization_config": ["twofour"]}, "config.json has the quantization_config ['twofour']"),
        ({"quantization_config": quantization | {"format_version": True}}, "config.json says format_version True"),
        ({"hidden_size": 128}, "by config.json it has"),
    ):
        path.write_text(json.dumps(intact | change))
        faults = relabel(tiny_pruned_folder, lambda manifest: None)
        assert len(faults) == (2 if "ignores" in words else 1) and words in faults[-1]


def test_a_dense_folder_of_another_dtype_than_its_config_names(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    convert(tiny_pruned_folder, tmp_path / "zeros", "dense")
    path = tmp_path / "zeros" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}))
    faults = relabel(tmp_path / "zeros", lambda manifest: None)
    assert len(faults) == 14 and "is stored as bfloat16, config.json says float32" in faults[0]


def test_a_missing_manifest(tiny_pruned_folder: Path) -> None:
    (tiny_pruned_folder / "twofour.json").unlink()
    assert "has no twofour.json" in check(tiny_pruned_folder).faults[0]


@pytest.mark.parametrize(("key", "value"), [("format_version", 4), ("pattern", "1:4"), ("values_dtype", "int4")])
def test_an_unknown_format(tiny_pruned_folder: Path, key: str, value: Any) -> None:
    path = tiny_pruned_folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][key] = value
    path.write_text(json.dumps(config))
    faults = check(tiny_pruned_folder).faults
    assert any(f"config.json says {key} {value!r}" in fault for fault in faults)


def test_two_variants(tiny_pruned_folder: Path, tiny_model_folder: Path) -> None:
    (tiny_pruned_folder / "model.safetensors").write_bytes((tiny_model_folder / "model.safetensors").read_bytes())
    assert "both packed and dense" in check(tiny_pruned_folder).faults[0]
