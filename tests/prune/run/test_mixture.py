"""Linears that stay dense: which ones, what they hold, and how the rest is trained around them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_families import FAMILIES, tiny

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import Weights, digests
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.folder import read_config
from twofour.prune.model import anatomy
from twofour.prune.run import mixture
from twofour.prune.run.plan import plan
from twofour.prune.run.prune import Report

SMALL: dict[str, Any] = {"samples": 4, "length": 32}
LAST = "model.layers.1"


def run(source: Path, out: Path, *patterns: str, **options: Any) -> Report:
    report = prune(source, out, PruneConfig(keep_dense=patterns, **{**SMALL, **options}))
    assert check(out).ok, check(out).faults
    return report


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_a_block_that_is_kept_is_that_of_the_dense_model(tiny_model_folder: Path, tmp_path: Path, preset: str) -> None:
    report = run(tiny_model_folder, tmp_path / "out", "*.layers.1.*", preset=preset)
    with Weights(tiny_model_folder) as dense, Weights(tmp_path / "out") as mixed:
        kept = [name for name in dense if name.startswith(LAST) and name.endswith("proj.weight")]
        assert len(kept) == 7 and all(torch.equal(dense[name], mixed[name]) for name in kept)
    quantization = read_config(tmp_path / "out")["quantization_config"]
    assert quantization["format_version"] == 1  # which older readers read
    manifest = report.manifest
    assert len(manifest["linears"]) == 7 and len(manifest["dense"]) == 8
    assert manifest["dense"][f"{LAST}.mlp.up_proj"] == "kept dense, as '*.layers.1.*' asks"
    assert manifest["shares"]["dense"]["linears"] == 7 and manifest["fallbacks"] == []
    assert "left dense: lm_head, 7 linears of the decoder blocks" in str(report)
    assert "2:4 50.0% of the weights, 36.0% of the bytes" in str(report)


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("values", ["model", "int8"])
def test_linears_that_are_kept_in_int8(tiny_model_folder: Path, tmp_path: Path, method: Any, values: Any) -> None:
    options = {"method": method, "values": values, "keep_dense_values": "int8"}
    report = run(tiny_model_folder, tmp_path / "out", "*.down_proj", **options)
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    quantization = read_config(tmp_path / "out")["quantization_config"]
    assert (quantization["format_version"], quantization["schemes"]) == (3, {"dense-int8": names})
    with Weights(tiny_model_folder) as dense, Weights(tmp_path / "out") as mixed:
        for name in names:
            expected = to_dense_int8(dense[f"{name}.weight"])
            assert torch.equal(mixed[f"{name}.int8_values"], expected.values)
            assert torch.equal(mixed[f"{name}.int8_scales"], expected.scales)
            assert f"{name}.weight" not in mixed
        assert len(mixed.bases()) == 12
    assert report.manifest["schemes"][names[0]] == "dense-int8"


def test_the_mixture_is_what_is_trained(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The loss before training is that of the mixture: less is lost than where all is 2:4."""
    lost = [
        run(tiny_model_folder, tmp_path / name, *patterns).manifest["recovery"]["model"]
        for name, patterns in (("all", ()), ("mixed", ("*.layers.1.*",)))
    ]
    assert lost[1]["before"] < lost[0]["before"] and lost[1]["after"] <= lost[1]["before"]


def test_int8_values_beside_dense_are_trained_through_their_rounding(tiny_model_folder: Path, tmp_path: Path) -> None:
    run(tiny_model_folder, tmp_path / "out", "*.layers.0.*", values="int8")
    quantization = read_config(tmp_path / "out")["quantization_config"]
    assert (quantization["values_dtype"], quantization["format_version"]) == ("int8", 1)


def test_a_pattern_that_splits_those_of_one_input_takes_all(tiny_model_folder: Path, tmp_path: Path) -> None:
    report = run(tiny_model_folder, tmp_path / "out", "*.0.self_attn.q_proj", "*.1.mlp.up_proj", method="magnitude")
    dense = set(report.manifest["dense"]) - {"lm_head"}
    attention = {f"model.layers.0.self_attn.{one}_proj" for one in "qkv"}
    assert dense == attention | {f"{LAST}.mlp.gate_proj", f"{LAST}.mlp.up_proj"}
    why = report.manifest["dense"]["model.layers.0.self_attn.k_proj"]
    assert why == "kept dense with model.layers.0.self_attn.q_proj, which has the same input"
    (note,) = report.manifest["fallbacks"]
    assert note.startswith("3 linears are dense beside those that were asked for (model.layers.0.self_attn.k_proj")
    assert note in str(report)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("*.layers.1.*", "*.layers.2.*"), r"'\*\.layers\.2\.\*' names no linear of the decoder blocks; .* like model"),
        (("lm_head",), "'lm_head' names no linear of the decoder blocks"),
        (("*",), "leaves nothing that becomes 2:4"),
        (("*_proj",), "leaves nothing that becomes 2:4"),
        (("*.[qo]_proj", "*.up_proj", "*.down_proj"), "leaves nothing that becomes 2:4"),  # k, v and gate with them
    ],
)
def test_patterns_that_make_no_sense_are_refused_before_any_work(
    tiny_model_folder: Path, tmp_path: Path, patterns: tuple[str, ...], words: str
) -> None:
    config = PruneConfig(keep_dense=patterns, **SMALL)
    with pytest.raises(InputError, match=words):
        prune(tiny_model_folder, tmp_path / "out", config)
    with pytest.raises(InputError, match=words):
        plan(tiny_model_folder, config)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_keeps_nothing_rounds_nothing() -> None:
    with pytest.raises(InputError, match="keep_dense_values is 'int8'; give model, or keep_dense with it"):
        PruneConfig(keep_dense_values="int8")
    with pytest.raises(InputError, match="keep_dense_values is 'int8'; give model with the format dense"):
        PruneConfig(keep_dense=("*",), keep_dense_values="int8", format="dense")


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_that_share_an_input_are_found_in_every_family(family: str) -> None:
    parts = anatomy.dissect(tiny(family))
    groups = mixture.shared_inputs(parts)
    assert sorted(name for group in groups for name in group) == sorted(parts.linears)
    together = {frozenset(name.rpartition(".")[2] for name in group) for group in groups}
    for names in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"w1", "w3"}):
        if any(names & group for group in together):
            assert any(names <= group for group in together)
    assert not any({"o_proj", "q_proj"} <= group or {"down_proj", "up_proj"} <= group for group in together)


def test_a_run_that_keeps_others_dense_does_not_go_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(keep_dense=("*.layers.1.*",), **SMALL)
    whole = prune(tiny_model_folder, tmp_path / "whole", config)

    def stop_at(moment: int) -> Any:
        steps: list[Any] = []

        def report(step: Any) -> None:
            steps.append(step)
            if len(steps) == moment:
                raise KeyboardInterrupt

        return report

    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model_folder, tmp_path / "out", config, stop_at(34))  # 31 tokens, two blocks, a step of distilling
    request = json.loads((tmp_path / ".out.unfinished" / "request.json").read_text())
    assert request["config"]["keep_dense"] == ["*.layers.1.*"]
    with pytest.raises(InputError, match=r"unfinished run with another config .*keep_dense"):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL))
    again = prune(tiny_model_folder, tmp_path / "out", config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert again.manifest["schemes"] == whole.manifest["schemes"]
