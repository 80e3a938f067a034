"""Pruning where something is wrong: the fault is named, the source stays as it is, and nothing half-made is left."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import InputError, ModelError, NonFiniteError, OutputError, TwofourError
from twofour.prune.format.checkpoint import Weights, digests
from twofour.prune.progress import Step
from twofour.prune.run import prune as run
from twofour.prune.text import corpus

SMALL: dict[str, Any] = {"samples": 4, "length": 32}
FAST = PruneConfig(preset="fast", **SMALL)
UP = "model.layers.1.mlp.up_proj.weight"

Change = Callable[[dict[str, torch.Tensor]], object]


def copied(folder: Path, out: Path, change: Change = lambda tensors: None) -> Path:
    """A copy of a model whose tensors may be changed."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def fails(
    source: Path,
    out: Path,
    kind: type[TwofourError],
    message: str,
    config: PruneConfig = FAST,
    left: Sequence[str] = (),
) -> None:
    """left: what the run had done before it failed, which is the user's to remove."""
    before, around = digests(source), sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    with pytest.raises(kind, match=message):
        prune(source, out, config)
    assert digests(source) == before
    kept = [out.parent / name for name in left]
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == sorted([*around, *kept])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_place(
    tiny_model_folder: Path, tmp_path: Path, bad: float
) -> None:
    source = copied(tiny_model_folder, tmp_path / "source", lambda tensors: tensors[UP].__setitem__((5, 7), bad))
    fails(source, tmp_path / "out", NonFiniteError, rf"{UP} is NaN or infinite at \[5, 7\]; take an intact copy")


def test_an_activation_that_overflows_is_named_with_layer_and_token(tiny_float32_folder: Path, tmp_path: Path) -> None:
    """Only `z` has the first dimension, which the first norm makes too large to square."""
    letters = "".join(chr(97 + i % 25) for i in range(128))
    (tmp_path / "text").write_text(f"{letters[:77]}z{letters[78:]}")
    tokenizer = AutoTokenizer.from_pretrained(tiny_float32_folder)
    (z,) = tokenizer("z")["input_ids"]

    def loud(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][:, 0] = 0
        tensors["model.embed_tokens.weight"][z, 0] = 1
        tensors["model.layers.0.input_layernorm.weight"][0] = 1e30

    source = copied(tiny_float32_folder, tmp_path / "source", loud)
    config = PruneConfig(preset="fast", calibration=str(tmp_path / "text"), **SMALL)
    ids = corpus.from_file(tokenizer, tmp_path / "text", **SMALL, seed=0)
    ((sample, position),) = (ids == z).nonzero().tolist()
    place = rf"layers\.0\.self_attn\.q_proj are too large .* at sample {sample}, position {position};"
    fails(source, tmp_path / "out", NonFiniteError, place, config, [".out.unfinished"])


@pytest.mark.parametrize("method", ["sparsegpt", "refine", "wanda"])
def test_an_input_that_is_always_zero(tiny_float32_folder: Path, tmp_path: Path, method: str) -> None:
    def silence(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.input_layernorm.weight"][[3, 8]] = 0

    source = copied(tiny_float32_folder, tmp_path / "source", silence)
    config = PruneConfig(method=method, format="dense", **SMALL)  # type: ignore[arg-type]
    prune(source, tmp_path / "out", config)
    assert check(tmp_path / "out").ok
    with Weights(tmp_path / "out") as after:
        weight = after["model.layers.1.self_attn.k_proj.weight"]
    assert not weight[:, [3, 8]].any() and int((weight != 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("method", ["sparsegpt", "refine"])
def test_three_tokens_are_enough_for_a_strict_result(tiny_float32_folder: Path, tmp_path: Path, method: str) -> None:
    config = PruneConfig(method=method, samples=1, length=3)  # type: ignore[arg-type]
    linears = prune(tiny_float32_folder, tmp_path / "out", config).manifest["linears"]
    assert check(tmp_path / "out").ok
    assert all(linear["tokens"] == 3 and linear["loss"] < 0.05 for linear in linears.values())  # 3 of 64 dimensions


def test_a_width_of_66_leaves_nothing_behind(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = copied(tiny_model_folder, tmp_path / "source")
    config = LlamaConfig.from_pretrained(source, intermediate_size=66)
    LlamaForCausalLM(config).bfloat16().save_pretrained(source)
    fails(source, tmp_path / "out", ModelError, r"layers\.0\.mlp\.down_proj has 66 inputs, which 4 does not divide")


def test_a_model_without_safetensors(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = copied(tiny_model_folder, tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    fails(source, tmp_path / "out", TwofourError, r"source holds no model\.safetensors")


def test_a_model_that_is_cut_short(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = copied(tiny_model_folder, tmp_path / "source")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])
    fails(source, tmp_path / "out", TwofourError, r"model\.safetensors is not an intact safetensors file")


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "/proc/out", "n" * 300])
def test_where_nothing_can_be_written(tiny_model_folder: Path, tmp_path: Path, place: str) -> None:
    """Root may write anywhere but below a file, in /proc, and under too long a name."""
    (tmp_path / "file").write_text("")
    fails(tiny_model_folder, tmp_path / place, OutputError, "cannot be made .*; choose another place")


def test_a_model_that_changes_while_it_is_pruned(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = copied(tiny_model_folder, tmp_path / "source"), run.pruned_model

    def and_change(*args: Any) -> Any:
        result = real(*args)
        tensors = load_file(source / "model.safetensors")
        save_file(
            {name: tensor * 2 for name, tensor in tensors.items()}, source / "model.safetensors", {"format": "pt"}
        )
        return result

    monkeypatch.setattr(run, "pruned_model", and_change)
    with pytest.raises(InputError, match="source changed while it was pruned; run again on a model that stays"):
        prune(source, tmp_path / "out", FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "source"]
    with pytest.raises(InputError, match=r"holds an unfinished run with another model; .* or remove that folder"):
        prune(source, tmp_path / "out", FAST)


KILLED = """
import os, signal, sys
from twofour.prune import PruneConfig, prune
from twofour.prune.recovery import distil

distil.logits = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
prune(sys.argv[1], sys.argv[2], PruneConfig(samples=4, length=32))
"""


def test_killed_where_the_whole_is_trained_and_then_done_without_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As the kernel kills a process for whose training there is no memory."""
    words = [sys.executable, "-c", KILLED, str(tiny_model_folder), str(tmp_path / "out")]
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == -9
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.unfinished").glob("block-*")}
    assert len(times) == 2

    def unchanged(step: Step) -> None:
        assert {path: path.stat().st_mtime_ns for path in times} == times

    manifest = prune(tiny_model_folder, tmp_path / "out", PruneConfig(train="blocks", **SMALL), unchanged).manifest
    assert manifest["recovery"]["model"] is None and "when it went on" in manifest["fallbacks"][0]
    assert check(tmp_path / "out").ok and [path.name for path in tmp_path.iterdir()] == ["out"]
