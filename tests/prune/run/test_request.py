"""Runs that go on otherwise than they were begun: what fits what is done is carried out and said, the rest refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from twofour.cli import main
from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import InputError, NonFiniteError
from twofour.prune.format.checkpoint import Weights, digests
from twofour.prune.format.packed import Packed
from twofour.prune.progress import Step
from twofour.prune.recovery import distil
from twofour.prune.run import footprint
from twofour.prune.run.request import Begun, Decided, go_on, merged, threads_note

SMALL: dict[str, Any] = {"samples": 4, "length": 32}
SAMPLING = 31  # reports before the first block
WHOLE, BLOCKS = Decided("auto", "cpu", []), Decided("blocks", "cpu", ["memory was short"])
AS_BEGUN = Decided("blocks", "cpu", ["left out"], blocks_as_begun=True)


def unfinished(out: Path) -> Path:
    return out.parent / f".{out.name}.unfinished"


def cut_off(model: Path, out: Path, config: PruneConfig, reports: int) -> None:
    seen = list[Step]()

    def report(step: Step) -> None:
        seen.append(step)
        if len(seen) == reports:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(model, out, config, report)


@pytest.mark.parametrize(
    ("before", "asked", "train", "as_begun"),
    [
        (WHOLE, "auto", "auto", False),
        (WHOLE, "model", "auto", False),
        (WHOLE, "blocks", "blocks", True),  # which are trained as long as before a whole
        (BLOCKS, "auto", "blocks", False),
        (BLOCKS, "blocks", "blocks", False),
        (AS_BEGUN, "auto", "blocks", True),
        (AS_BEGUN, "blocks", "blocks", True),
        (AS_BEGUN, "model", "model", False),
    ],
)
def test_what_was_decided_stays_where_blocks_are_done(before: Decided, asked: Any, train: str, as_begun: bool) -> None:
    today = Decided("blocks", "cuda", ["there is less memory today"])
    found = go_on(PruneConfig(train=asked), today, Begun(before, 1))
    assert (found.train, found.blocks_as_begun, found.writer) == (train, as_begun, "cpu")
    assert "there is less memory today" not in found.fallbacks


def test_blocks_that_were_all_that_is_trained_do_not_stand_before_a_whole() -> None:
    with pytest.raises(InputError, match="leave out --train model to go on, or choose another name"):
        go_on(PruneConfig(train="model"), WHOLE, Begun(BLOCKS, 1))
    assert go_on(PruneConfig(train="model"), WHOLE, Begun(BLOCKS, 0)) == WHOLE  # only a text is kept
    assert go_on(PruneConfig(), BLOCKS, None) == BLOCKS


def test_training_less_is_said_where_anything_is_trained() -> None:
    (note,) = go_on(PruneConfig(train="blocks"), WHOLE, Begun(WHOLE, 1)).fallbacks
    assert note.startswith("kept weights trained block by block, 1 times through the text: the run was begun to train")
    assert go_on(PruneConfig(preset="fast", train="blocks"), WHOLE, Begun(WHOLE, 1)).fallbacks == []


def test_blocks_as_begun_have_the_passes_that_stand_before_a_whole() -> None:
    passes = [
        (stages.block_passes, stages.model_passes)
        for config in ({}, {"train": "blocks"}, {"train": "blocks", "blocks_as_begun": True})
        for stages in [PruneConfig(preset="best", **config).stages]  # type: ignore[arg-type]
    ]
    assert passes == [(1, 4), (5, 0), (1, 0)]


def test_every_number_of_threads_is_remembered() -> None:
    begun: dict[str, Any] = {"model": 1, "threads": [2]}
    for threads, expected in ((2, [2]), (4, [2, 4]), (4, [2, 4]), (2, [2, 4, 2])):
        begun = merged({"model": 1, "threads": [threads]}, begun, Path("folder"))
        assert begun["threads"] == expected
    assert threads_note([2, 4, 2]) == [
        "computed on 2, then 4, then 2 threads: the last bits are those of no run in one go"
    ]
    assert threads_note([2]) == []


def fails_in_training(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def no_loss(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(distil, "logits", no_loss)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NonFiniteError("no finite loss"), "no finite loss"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory.* --train blocks"),
    ],
)
def test_a_training_that_fails_loses_no_block(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    config = PruneConfig(**SMALL)
    with monkeypatch.context() as failing:
        fails_in_training(failing, error)
        with pytest.raises((NonFiniteError, InputError), match=said) as failed:
            prune(tiny_model_folder, tmp_path / "out", config)
    assert '"--train blocks" does without training the whole model' in failed.value.__notes__[0]
    blocks = [unfinished(tmp_path / "out") / f"block-{index}.safetensors" for index in range(2)]
    done = [path.stat().st_mtime_ns for path in blocks]
    cut_off(tiny_model_folder, tmp_path / "out", config, 1)  # one step of the training
    assert [path.stat().st_mtime_ns for path in blocks] == done
    prune(tiny_model_folder, tmp_path / "out", config)
    prune(tiny_model_folder, tmp_path / "whole", config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_the_blocks_are_the_result_where_the_whole_cannot_be_trained(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fails_in_training(monkeypatch, NonFiniteError("no finite loss"))
    with pytest.raises(NonFiniteError):
        prune(tiny_model_folder, out, PruneConfig(format="dense", **SMALL))
    with safe_open(unfinished(out) / "block-1.safetensors", framework="pt") as file:
        names = [name.removesuffix(".values") for name in file.keys() if name.endswith(".values")]  # noqa: SIM118
        parts = {name: (file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.positions")) for name in names}
    manifest = prune(tiny_model_folder, out, PruneConfig(format="dense", train="blocks", **SMALL)).manifest
    assert manifest["recovery"]["model"] is None
    assert [block["passes"] for block in manifest["recovery"]["blocks"]] == [1, 1]
    assert "which was left out when it went on" in manifest["fallbacks"][0] and check(out).ok
    with Weights(out) as weights:
        kept = {f"{name}.weight": Packed(*each).unpack() for name, each in parts.items()}
        assert len(kept) == 7 and all(torch.equal(weights[name], weight) for name, weight in kept.items())


def test_the_format_may_be_another_and_the_bytes_are_those_of_a_run_in_one_go(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    cut_off(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL), SAMPLING + 1)
    dense = PruneConfig(format="dense", **SMALL)
    prune(tiny_model_folder, tmp_path / "out", dense)
    prune(tiny_model_folder, tmp_path / "whole", dense)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_another_number_of_threads_goes_on_and_is_on_the_label(tiny_model_folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    cut_off(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL), SAMPLING + 1)
    try:
        torch.set_num_threads(threads + 1)
        manifest = prune(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL)).manifest
    finally:
        torch.set_num_threads(threads)
    assert manifest["fallbacks"] == threads_note([threads, threads + 1]) and check(tmp_path / "out").ok


def test_memory_that_is_short_today_does_not_change_what_was_begun(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL), SAMPLING + 1)
    monkeypatch.setattr(footprint, "host_bytes", lambda: 1)
    manifest = prune(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL)).manifest
    assert manifest["recovery"]["model"] is not None and manifest["fallbacks"] == []


def test_the_command_says_how_to_go_on(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_in_training(monkeypatch, NonFiniteError("no finite loss"))
    words = ["prune", str(tiny_model_folder), "-o", str(tmp_path / "out"), "--samples", "4", "--length", "32"]
    assert main(words) == 1
    *_, error, note = capsys.readouterr().err.splitlines()
    assert error == "error: no finite loss" and "give the command again to go on" in note
    assert main([*words, "--train", "blocks"]) == 0


def test_another_request_is_refused_and_keeps_what_is_there(tiny_model_folder: Path, tmp_path: Path) -> None:
    cut_off(tiny_model_folder, tmp_path / "out", PruneConfig(**SMALL), SAMPLING + 1)
    before = digests(unfinished(tmp_path / "out"))
    with pytest.raises(
        InputError, match=r"\.out\.unfinished holds an unfinished run with another config \(method\); give"
    ):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(method="wanda", **SMALL))
    assert digests(unfinished(tmp_path / "out")) == before != {}
    with pytest.raises(InputError, match=r"an unfinished run with another config \(lm_head\); give"):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(lm_head="int8", **SMALL))
    prune(tiny_model_folder, tmp_path / "other", PruneConfig(method="wanda", **SMALL))  # another name is another run


def test_a_run_with_a_head_in_int8_goes_on_to_the_same_bytes(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(lm_head="int8", **SMALL)
    cut_off(tiny_model_folder, tmp_path / "out", config, SAMPLING + 1)
    prune(tiny_model_folder, tmp_path / "out", config)
    prune(tiny_model_folder, tmp_path / "whole", config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_model_that_changed_meanwhile_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for path in tiny_model_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    cut_off(source, tmp_path / "out", PruneConfig(**SMALL), SAMPLING + 1)
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match="another model"):
        prune(source, tmp_path / "out", PruneConfig(**SMALL))


@pytest.mark.parametrize("changed", ["tokenizer.json", "text"])
def test_what_the_bits_depend_on_must_not_change_meanwhile(
    tiny_model_folder: Path, tmp_path: Path, changed: str
) -> None:
    source, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(tiny_model_folder, source)
    text.write_text("one two three four five six seven eight nine ten\n" * 40)
    config = PruneConfig(calibration=str(text), **SMALL)
    cut_off(source, tmp_path / "out", config, 1)
    (source / "log.txt").write_text("what is beside the model may change")
    other = text if changed == "text" else source / changed
    other.write_text(other.read_text() + "\n")
    with pytest.raises(InputError, match=f"unfinished run with another {'text' if changed == 'text' else 'model'};"):
        prune(source, tmp_path / "out", config)


def test_a_limit_that_cannot_be_kept_costs_nothing_that_is_done(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(train="blocks", **SMALL)
    cut_off(tiny_model_folder, tmp_path / "out", config, SAMPLING + 1)
    before = digests(unfinished(tmp_path / "out"))
    with pytest.raises(InputError, match="give a higher limit"):
        prune(tiny_model_folder, tmp_path / "out", replace(config, memory_limit_bytes=1 << 20))
    assert digests(unfinished(tmp_path / "out")) == before != {}
