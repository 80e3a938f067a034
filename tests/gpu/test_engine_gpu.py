"""A packed tiny model on a device: its logits by every kernel, and the engine that serves it."""

import gc
import json
from pathlib import Path

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.types import EngineConfig, Prompt, Sampling
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.model.loading import load_model, weight_report

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not triton_decode.available().startswith("sm_"), reason=f"Triton kernels: {triton_decode.available()}"
    ),
]
TOKENS = [(7 * i + 1) % 300 for i in range(40)]


@pytest.mark.parametrize("kernels", ["auto", "triton", "cusparselt"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_the_logits_are_those_of_the_expanded_model(tiny_pruned_folder: Path, kernels: str, tokens: int) -> None:
    ids = torch.tensor([TOKENS[:tokens]], device="cuda")
    with torch.inference_mode():
        expected = load_model(str(tiny_pruned_folder), "cuda", kernels="reference")(ids).logits.float()
        found = load_model(str(tiny_pruned_folder), "cuda", kernels=kernels)(ids).logits.float()
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_the_engine_gives_the_same_tokens_alone_and_in_a_batch(tiny_pruned_folder: Path) -> None:
    loop, info = assemble.start(EngineConfig(str(tiny_pruned_folder), device="cuda", kernels="triton", kv_tokens=4096))
    assert info.kernels == {"triton": 14} and info.device.startswith("cuda")
    prompts = [Prompt(str(i), tuple(TOKENS[i : i + 9]), Sampling(8, temperature=0)) for i in range(4)]
    alone = [generate(loop, [prompt])[prompt.id] for prompt in prompts]
    together = generate(loop, prompts)
    assert [len(tokens) for tokens in alone] == [8] * 4
    assert [together[prompt.id] for prompt in prompts] == alone


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="a single CUDA device")
@pytest.mark.parametrize("kernels", ["auto", "triton", "cusparselt"])
def test_a_model_on_the_second_gpu(tiny_pruned_folder: Path, kernels: str) -> None:
    ids = torch.tensor([TOKENS], device="cuda:1")
    try:
        with torch.inference_mode():
            expected = load_model(str(tiny_pruned_folder), "cuda:1", kernels="reference")(ids).logits.float()
            found = load_model(str(tiny_pruned_folder), "cuda:1", kernels=kernels)(ids).logits.float()
    finally:
        torch.cuda.set_device(0)
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_loads_under_auto_with_a_cache_that_can_be_written(
    tiny_pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """All kernels are raced for real."""
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    model = load_model(str(tiny_pruned_folder), "cuda", dtype=dtype)
    assert not [note for note in weight_report(model).notes if "dropped" in note]
    raced = json.loads((tmp_path / "cache" / "kernels.json").read_text())
    (shapes,) = raced.values()
    assert len(shapes) == 4 and all(dtype in shape for shape in shapes)
    assert all({"triton", "dense"} <= kept["seconds"].keys() for kept in shapes.values())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_int8_takes_less_memory_than_dense_at_every_moment(
    large_model_folder: Path, large_int8_folder: Path, kernels: str
) -> None:
    """Where it is expanded, as much, and what gives its stored form back."""
    peaks = []
    for each, asked in ((large_model_folder, "auto"), (large_int8_folder, kernels)):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = load_model(str(each), "cuda", kernels=asked)
        peaks.append(torch.cuda.max_memory_allocated())
        expected = {"auto": {"triton", "cusparselt"}, "reference": {"reference"}}[kernels]
        assert each == large_model_folder or weight_report(model).kernels.keys() <= expected
        del model
    assert peaks[1] < peaks[0] * (1 if kernels == "auto" else 1.25)


def generate(loop: Loop, prompts: list[Prompt]) -> dict[str, list[int]]:
    """Send all prompts at once and collect what is generated until the loop is idle."""
    waiting, reports = [list[Command](prompts)], list[Report]()

    def receive(timeout_s: float) -> list[Command] | None:
        if waiting:
            return waiting.pop()
        return None if timeout_s else []

    loop.run(receive, reports.append)
    found: dict[str, list[int]] = {prompt.id: [] for prompt in prompts}
    for piece in (piece for report in reports for piece in report.pieces):
        assert piece.error is None
        found[piece.id] += piece.tokens
    return found
