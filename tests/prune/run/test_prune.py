"""Pruning a whole tiny model: what comes out is 2:4, deterministic, labelled, and refused where it should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_families import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import CheckpointError, InputError, ModelError, OutputError, TextError
from twofour.prune.format.checkpoint import SparseWeight, Weights, digests
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.folder import read_config
from twofour.prune.format.packed import Packed
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.batches import Batch
from twofour.prune.recovery.training import Outcome
from twofour.prune.run import prune as run
from twofour.prune.run import solvers
from twofour.prune.run.calibrate import ToStored
from twofour.prune.run.plan import plan
from twofour.prune.solving.magnitude import magnitude

SMALL = {"samples": 4, "length": 32}


@pytest.mark.parametrize("method", ["sparsegpt", "refine", "wanda", "magnitude"])
def test_methods(tiny_float32_folder: Path, tmp_path: Path, method: str) -> None:
    config = PruneConfig(method=method, **SMALL)  # type: ignore[arg-type]
    report = prune(tiny_float32_folder, tmp_path / "out", config)
    assert check(tmp_path / "out").ok
    manifest = json.loads((tmp_path / "out" / "twofour.json").read_text())
    assert manifest["method"] == method and len(manifest["linears"]) == 14
    assert manifest["dense"] == {"lm_head": "outside the decoder blocks: never pruned"}
    assert all(0 < linear["loss"] < 1 for linear in manifest["linears"].values())
    assert "14 linears are 2:4" in str(report)


@pytest.mark.parametrize("method", ["sparsegpt", "magnitude"])
def test_int8_values(tiny_model_folder: Path, tmp_path: Path, method: str) -> None:
    config = PruneConfig(method=method, values="int8", **SMALL)  # type: ignore[arg-type]
    report = prune(tiny_model_folder, tmp_path / "out", config)
    assert check(tmp_path / "out").ok and "int8 values" in str(report)
    assert report.manifest["values"] == {"dtype": "int8", "scale_columns": 0}
    name = "model.layers.1.mlp.down_proj"
    with Weights(tiny_model_folder) as before, Weights(tmp_path / "out") as after:
        packed = Packed(*(after[f"{name}.{part}"] for part in ("values", "positions", "scales")))
        weight = before[f"{name}.weight"].float()
    assert packed.values.dtype == torch.int8 and int(packed.values.abs().max()) == 127
    if method == "magnitude":  # whose loss is of the weights alone: of the stored ones, rounding and all
        expected = float((weight - packed.unpack()).square().sum() / weight.square().sum())
        assert report.manifest["linears"][name]["loss"] == pytest.approx(expected, rel=1e-5)
        unrounded = float((weight - magnitude(weight)).square().sum() / weight.square().sum())
        assert abs(expected - unrounded) > 1e-5 * unrounded


def test_float32_is_float32_whatever_the_caller_allows(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = set[str](), solvers.sparsegpt
    on_cpu, on_gpu = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = on_cpu.fp32_precision, on_gpu.fp32_precision

    def watch(*args: Any) -> torch.Tensor:
        seen.update((on_cpu.fp32_precision, on_gpu.fp32_precision))
        return original(*args)

    monkeypatch.setattr(solvers, "sparsegpt", watch)
    on_cpu.fp32_precision, on_gpu.fp32_precision = "bf16", "tf32"
    try:
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(preset="fast", **SMALL))
        assert seen == {"ieee"} and (on_cpu.fp32_precision, on_gpu.fp32_precision) == ("bf16", "tf32")
    finally:
        on_cpu.fp32_precision, on_gpu.fp32_precision = before


@pytest.mark.parametrize(
    ("preset", "train", "values"),
    [
        ("fast", "auto", "model"),
        ("balanced", "auto", "model"),
        ("best", "blocks", "model"),
        ("best", "auto", "int8"),
    ],
)
def test_presets_are_2_of_4_and_on_the_label(
    tiny_model_folder: Path, tmp_path: Path, preset: str, train: str, values: str
) -> None:
    config = PruneConfig(preset=preset, train=train, values=values, samples=16, length=32)  # type: ignore[arg-type]
    report = prune(tiny_model_folder, tmp_path / "out", config)
    manifest, summary = report.manifest, str(report)
    assert check(tmp_path / "out").ok and manifest["preset"] == preset
    assert ("before kept weights were trained" in summary) == (preset != "fast")
    assert ("KL to dense" in summary) == (preset != "fast" and train == "auto")
    assert f"twofour eval {tmp_path / 'out'} --baseline DENSE --label" in summary
    recovery = manifest["recovery"]
    assert (recovery is not None) == (preset != "fast")
    if recovery:
        outcomes = [*recovery["blocks"], *([recovery["model"]] if train == "auto" else [])]
        assert len(recovery["blocks"]) == 2 and all(outcome["after"] <= outcome["before"] for outcome in outcomes)
        assert (recovery["model"] is None) == (train == "blocks")


def test_a_weight_is_made_once_to_be_written(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, original = list[nn.Linear](), run.trained_weight

    def counted(linear: nn.Linear, to_stored: ToStored) -> SparseWeight:
        made.append(linear)
        return original(linear, to_stored)

    monkeypatch.setattr(run, "trained_weight", counted)
    prune(tiny_model_folder, tmp_path / "out", PruneConfig(preset="best", **SMALL))
    assert len(made) == 14


def test_what_the_last_training_made_is_what_is_stored(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Tensor] = {}

    def distil(parts: Anatomy, ids: Tensor, batches: list[Batch], *rest: object) -> Outcome:
        for name, linear in parts.linears.items():
            made[f"{name}.weight"] = linear.weight.mul_(2).clone()
        return Outcome(1.0, 0.5, 1)

    monkeypatch.setattr(run, "distil", distil)
    prune(tiny_model_folder, tmp_path / "out", PruneConfig(preset="best", format="dense", **SMALL))
    with Weights(tmp_path / "out") as stored:
        assert len(made) == 14 and all(torch.equal(stored[name], weight) for name, weight in made.items())


def test_refine_loses_less_than_sparsegpt_on_its_own_text(tiny_float32_folder: Path, tmp_path: Path) -> None:
    losses = []
    for method in ("sparsegpt", "refine"):
        config = PruneConfig(method=method, samples=16, length=64)  # type: ignore[arg-type]
        losses.append(prune(tiny_float32_folder, tmp_path / method, config).manifest["linears"])
    first = [name for name in losses[0] if ".layers.0." in name]  # later ones see other inputs
    assert sum(losses[1][name]["loss"] for name in first) < 0.95 * sum(losses[0][name]["loss"] for name in first)


@pytest.mark.parametrize("preset", ["balanced", "best"])
def test_the_same_seed_gives_the_same_bytes(tiny_model_folder: Path, tmp_path: Path, preset: str) -> None:
    for name in ("one", "two"):
        config = PruneConfig(preset=preset, **SMALL)  # type: ignore[arg-type]
        prune(tiny_model_folder, tmp_path / name, config)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_tied_embeddings_stay(tiny_model_folder: Path, tmp_path: Path) -> None:
    prune(tiny_model_folder, tmp_path / "out", PruneConfig(format="dense", **SMALL))
    with Weights(tiny_model_folder) as before, Weights(tmp_path / "out") as after:
        name = "model.embed_tokens.weight"
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize(("folder", "tied"), [("tiny_model_folder", True), ("tiny_float32_folder", False)])
def test_a_head_in_int8(request: pytest.FixtureRequest, tmp_path: Path, folder: str, tied: bool) -> None:
    source = request.getfixturevalue(folder)
    reports = {
        lm_head: prune(source, tmp_path / lm_head, PruneConfig(preset="fast", lm_head=lm_head, **SMALL))  # type: ignore[arg-type]
        for lm_head in ("model", "int8")
    }
    assert check(tmp_path / "int8").ok
    with Weights(source) as dense, Weights(tmp_path / "model") as plain, Weights(tmp_path / "int8") as rounded:
        expected = to_dense_int8(dense["model.embed_tokens.weight" if tied else "lm_head.weight"])
        assert torch.equal(rounded["lm_head.int8_values"], expected.values)
        assert torch.equal(rounded["lm_head.int8_scales"], expected.scales)
        others = set(plain) - {"lm_head.weight"}
        assert set(rounded) == others | {"lm_head.int8_values", "lm_head.int8_scales"}
        assert all(torch.equal(plain[name], rounded[name]) for name in others)  # the embeddings, too
    assert read_config(tmp_path / "int8")["tie_word_embeddings"] is tied
    summary = str(reports["int8"])
    assert "lm_head: int8 with a scale for each 64 columns" in summary and "lm_head: int8" not in str(reports["model"])
    assert ("stored beside the embeddings" in summary) == tied


def test_a_head_that_cannot_be_int8_is_refused_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "dense"
    tiny("llama", hidden_size=36, head_dim=8).save_pretrained(source)
    config = PruneConfig(method="magnitude", lm_head="int8")
    for refused in (lambda: prune(source, tmp_path / "out", config), lambda: plan(source, config)):
        with pytest.raises(ModelError, match="lm_head has 36 columns, which 8 does not divide; leave out --lm-head"):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_block_that_config_json_does_not_know_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model_folder, tmp_path / "more"))
    tensors = load_file(source / "model.safetensors")
    more = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\..*which its config\.json has no place for"):
        prune(source, tmp_path / "out", PruneConfig(method="magnitude"))
    assert not (tmp_path / "out").exists()


def test_existing_out_is_refused_first(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig())


def test_too_little_text_leaves_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("too short")
    config = PruneConfig(calibration=str(tmp_path / "text"), **SMALL)
    with pytest.raises(TextError, match="9 tokens, 4 samples of 32 need 128"):
        prune(tiny_model_folder, tmp_path / "out", config)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_window_longer_than_the_context(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exceeds the model's context of 1024"):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(samples=2, length=2048))


def test_padding_is_not_calibrated_on(tiny_float32_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from twofour.prune.model import anatomy, batches
    from twofour.prune.run import calibrate
    from twofour.prune.solving.statistics import Norms

    model = AutoModelForCausalLM.from_pretrained(tiny_float32_folder)
    parts = anatomy.dissect(model)
    ids = torch.randint(3, 200, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    (batch,) = batches.record(parts, ids, mask)
    observer = calibrate.collect(parts.blocks[0], 0, [batch], Norms)
    assert {statistic.tokens for _, statistic in observer.groups()} == {13}


def test_a_chat_model_is_calibrated_on_conversations_and_the_label_says_what_became_of_them(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """A random model ends few questions: its own text takes their place, which is a fallback."""
    label = prune(tiny_model_folder, tmp_path / "out", PruneConfig(method="wanda", samples=4, length=128)).manifest
    own, chat = label["calibration"]["sources"]
    assert (own["source"], chat["source"]) == ("self", "chat") and own["samples"] == chat["samples"] == 2
    assert own["written_by"] == chat["written_by"] == "transformers"
    counts = chat["conversations"]
    assert counts["questions"] == counts["kept"] + sum(counts["dropped"].values()) > 0
    assert any("samples of conversations are text as of self" in fallback for fallback in label["fallbacks"])
    assert f"{counts['kept']} of {counts['questions']} kept" in (tmp_path / "out" / "README.md").read_text()
