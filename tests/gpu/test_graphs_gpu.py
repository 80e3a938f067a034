"""Decode steps as CUDA graphs: the text of the engine without them, and the engine's life without them."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.types import EngineConfig, EngineInfo, Prompt, Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PROMPTS = [
    Prompt(str(i), tuple((7 * j + i) % 300 for j in range(3 + 5 * i)), Sampling(24, temperature=0, ignore_eos=True))
    for i in range(5)
]


def start(folder: Path, kernels: str, cuda_graphs: bool, kv_tokens: int = 4096) -> tuple[Loop, EngineInfo]:
    return assemble.start(
        EngineConfig(
            str(folder),
            device="cuda",
            dtype="float32" if kernels == "reference" else None,
            kernels=kernels,
            max_num_seqs=5,
            kv_tokens=kv_tokens,
            cuda_graphs=cuda_graphs,
        )
    )


def generate(loop: Loop, prompts: list[Prompt]) -> tuple[dict[str, list[int]], Report]:
    """Send one prompt a step and collect what is generated until the loop is idle."""
    waiting, reports = prompts[::-1], list[Report]()

    def receive(timeout_s: float) -> list[Command] | None:
        return [waiting.pop()] if waiting else None if timeout_s else []

    loop.run(receive, reports.append)
    found: dict[str, list[int]] = {prompt.id: [] for prompt in prompts}
    for piece in (piece for report in reports for piece in report.pieces):
        assert piece.error is None
        found[piece.id] += piece.tokens
    return found, reports[-1]


@pytest.mark.parametrize("kv_tokens", [4096, 128])
def test_greedy_text_is_the_same_with_and_without(tiny_pruned_folder: Path, kv_tokens: int) -> None:
    """In float32, joining one by one, over block boundaries; in the small cache they preempt each other."""
    loop, info = start(tiny_pruned_folder, "reference", True, kv_tokens)
    plain, without = start(tiny_pruned_folder, "reference", False, kv_tokens)
    found, last = generate(loop, PROMPTS)
    expected, eager = generate(plain, PROMPTS)
    assert found == expected
    assert info.cuda_graphs > 3 and last.stats.replayed_steps > 15
    assert (last.stats.preemptions > 0) == (kv_tokens < 4096)
    assert (without.cuda_graphs, without.cuda_graph_bytes, eager.stats.replayed_steps) == (0, 0, 0)


@pytest.mark.parametrize("kernels", ["auto", "triton", "cusparselt"])
def test_every_kernel_can_be_captured(tiny_pruned_folder: Path, kernels: str) -> None:
    """The start has compared its replayed logits with the model's own, or there would be a note and no graph."""
    loop, info = start(tiny_pruned_folder, kernels, True)
    assert info.cuda_graphs > 3 and not [note for note in info.notes if "graphs" in note]
    first, last = generate(loop, PROMPTS)
    assert [len(tokens) for tokens in first.values()] == [24] * 5
    assert last.stats.replayed_steps > 15
    again, _ = generate(start(tiny_pruned_folder, kernels, True)[0], PROMPTS)
    assert again == first


def test_a_model_that_waits_for_its_device_is_served_without_and_says_so(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "dynamic")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "twofour.serve.engine"):
        loop, info = start(folder, "auto", True)
    assert info.cuda_graphs == 0 and [note for note in info.notes if "without CUDA graphs" in note]
    assert len([record for record in caplog.records if "CUDA graphs" in record.message]) == 1
    expected, _ = generate(start(folder, "auto", False)[0], PROMPTS)
    assert generate(loop, PROMPTS)[0] == expected
