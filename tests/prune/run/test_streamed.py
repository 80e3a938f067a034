"""Runs that distil a stream: asked for in tokens or minutes, cut off and gone on with, planned and labelled."""

from pathlib import Path
from typing import Any

import pytest

from twofour.cli import main
from twofour.prune import PruneConfig, check, prune
from twofour.prune.commands.prune import count
from twofour.prune.config import PRESETS, Stages
from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import digests
from twofour.prune.model import anatomy
from twofour.prune.progress import Step
from twofour.prune.recovery import stream, training
from twofour.prune.run import footprint, training_bytes

SMALL: dict[str, Any] = {"samples": 4, "length": 32, "calibration": "self"}


@pytest.mark.parametrize(
    "asked",
    [
        {"preset": "fast", "tokens": 2048},
        {"preset": "balanced", "tokens": 1024, "values": "int8"},
        {"method": "refine", "minutes": 0.03},
    ],
)
def test_a_stream_is_on_the_label(tiny_model_folder: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    report = prune(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL, **asked))
    outcome = report.manifest["recovery"]["model"]
    assert check(tmp_path / "out").ok and outcome["after"] <= outcome["before"]
    assert outcome["tokens"] == asked.get("tokens", outcome["tokens"])
    assert f"tokens of fresh text: {outcome['tokens']}" in str(report)
    blocks = report.manifest["recovery"]["blocks"]
    assert len(blocks) == (2 if asked.get("preset") == "balanced" else 0)


def test_a_run_that_was_cut_off_in_its_stream_goes_on_to_the_same_bytes(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 0)
    monkeypatch.setattr(stream, "CHUNK_TOKENS", {"cpu": 512})
    monkeypatch.setattr(stream, "STEP_TOKENS", 64)
    config = PruneConfig(preset="fast", tokens=1024, **SMALL)
    prune(tiny_model_folder, tmp_path / "whole", config)

    def cut_off(step: Step) -> None:
        if step.stage == stream.STAGE and step.done >= 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model_folder, tmp_path / "cut", config, cut_off)
    steps = list[Step]()
    prune(tiny_model_folder, tmp_path / "cut", config, steps.append)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert min(step.done for step in steps if step.stage == stream.STAGE) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_stream_takes_the_place_of_passes() -> None:
    assert PruneConfig(preset="best", tokens=5000).stages == PRESETS["best"]._replace(model_passes=0, tokens=5000)
    assert PruneConfig(method="refine", minutes=2.5).stages == Stages("refine", minutes=2.5)
    by_blocks, balanced = PruneConfig(preset="balanced", tokens=5000, train="blocks").stages, PRESETS["balanced"]
    assert (
        by_blocks == balanced._replace(block_passes=2, model_passes=0)
        and by_blocks.trains
        and not by_blocks.trains_whole
    )
    left_out = PruneConfig(preset="balanced", minutes=5.0, train="blocks", blocks_as_begun=True).stages
    assert left_out == balanced._replace(model_passes=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tokens": 100}, "tokens is 100; give at least those of a sample"),
        ({"minutes": 0.0}, "minutes is 0.0; give a positive number"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"minutes": 1.0, "tokens": 9999}, "tokens and minutes exclude each other"),
        ({"method": "magnitude", "tokens": 9999}, "method is 'magnitude'; give one that reads text"),
    ],
)
def test_a_stream_that_cannot_be(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PruneConfig(**asked)


def test_numbers_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert [count(text) for text in ("512", "500k", "10M", "0.5G")] == [512, 500_000, 10**7, 5 * 10**8]
    for words in (["--tokens", "ten"], ["--tokens", "1M", "--minutes", "2"]):
        with pytest.raises(SystemExit):
            main(["prune", "model", "-o", "out", *words])
    said = " ".join(capsys.readouterr().err.split())
    assert "'ten' is no number; give one as 500000, 500k or 10M" in said and "not allowed with" in said


def test_dense_weights_wait_on_the_device_where_they_have_room(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    asked = PruneConfig(preset="fast", tokens=10**6, device="cuda", **SMALL)
    needed = footprint.device_memory(parts, asked).size
    dense = sum(linear.weight.nbytes for linear in parts.linears.values())
    assert training_bytes.dense_bytes(parts) == dense
    for free, place in ((needed + dense, "cuda"), (needed + dense - 1, "cpu")):
        monkeypatch.setattr(footprint, "device_bytes", lambda device, free=free: free)
        assert footprint.teacher(parts, asked) == place
    host = footprint.memory(parts, asked)
    assert host.terms["dense weights"] == dense and host.terms["states of a chunk"] == (1 << 17) * 64 * 2
    on_cpu = PruneConfig(preset="fast", tokens=10**6, **SMALL)
    assert footprint.teacher(parts, on_cpu) == "cpu"
