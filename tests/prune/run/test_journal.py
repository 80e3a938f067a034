"""Runs that are cut off, and then go on to the same bytes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import FactorError, InputError, OutputError, TwofourError
from twofour.prune.format.checkpoint import digests
from twofour.prune.model.batches import Batch
from twofour.prune.progress import Step
from twofour.prune.recovery import training
from twofour.prune.run import calibrate, journal, solvers
from twofour.prune.run import prune as run
from twofour.prune.run.journal import Journal
from twofour.prune.solving.statistics import Positions
from twofour.prune.text.sources import Calibration

SMALL: dict[str, Any] = {"samples": 4, "length": 32}
CONFIGS = {
    "balanced": PruneConfig(**SMALL),
    "best": PruneConfig(preset="best", **SMALL),
    "int8": PruneConfig(preset="best", values="int8", **SMALL),
    "float16": PruneConfig(preset="best", dtype="float16", **SMALL),
    "wanda": PruneConfig(method="wanda", **SMALL),
}


def unfinished(out: Path) -> Path:
    return out.parent / f".{out.name}.unfinished"


def cut_off_at(moment: int) -> Any:
    """A progress that stops the process at its n-th report."""
    seen = 0

    def report(step: Step) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, out, config = tmp_path / "whole", tmp_path / "out", CONFIGS[name]
    prune(tiny_model_folder, whole, config)
    sampling = 31  # reports before the first block
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 0)
    for moment in (sampling - 1, sampling + 1, 1, 2, 2):  # in the text, after block 0, block 1, two steps of distilling
        try:
            prune(tiny_model_folder, out, config, cut_off_at(moment))
        except KeyboardInterrupt:
            assert not out.exists()
        else:
            break
    else:
        prune(tiny_model_folder, out, config)
    assert digests(out) == digests(whole) and check(out).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_what_is_done_is_not_done_again(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, solved = CONFIGS["best"], 0
    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model_folder, tmp_path / "out", config, cut_off_at(32))  # 31 tokens, block 0
    names = {path.name for path in unfinished(tmp_path / "out").iterdir()}
    states = {"states-0.0.safetensors", "states-0.1.safetensors"}  # of two batches
    assert names == {"lock", "request.json", "tokens.safetensors", "block-0.safetensors", *states}
    original = solvers.refine

    def count(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal solved
        solved += 1
        return original(*args, **options)

    monkeypatch.setattr(solvers, "refine", count)
    monkeypatch.setattr(run, "calibration", None)  # must not be called
    manifest = prune(tiny_model_folder, tmp_path / "out", config).manifest
    assert solved == 4  # of the second block only
    assert len(manifest["recovery"]["blocks"]) == 2 and len(manifest["linears"]) == 14


KILLED = """
import os, signal, sys
from pathlib import Path
from twofour.prune import PruneConfig, prune
from twofour.prune.run import journal

save, writes = journal.save_file, 0

def save_and_die(tensors, path, metadata):
    global writes
    writes += 1
    save(tensors, path, metadata)
    if writes == int(sys.argv[3]):
        if sys.argv[4] == "torn":
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

journal.save_file = save_and_die
import torch
torch.set_num_threads(int(sys.argv[5]))
prune(sys.argv[1], sys.argv[2], PruneConfig(samples=4, length=32))
"""


@pytest.mark.parametrize(("write", "how"), [(6, "torn"), (7, "whole")])  # tokens, then twice: states, states, block
def test_kill_9_in_the_middle_of_a_write(tiny_model_folder: Path, tmp_path: Path, write: int, how: str) -> None:
    out, threads = tmp_path / "out", str(torch.get_num_threads())
    command = [sys.executable, "-c", KILLED, str(tiny_model_folder), str(out), str(write), how, threads]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -9
    assert unfinished(out).is_dir() and not out.exists()
    prune(tiny_model_folder, out, CONFIGS["balanced"])
    prune(tiny_model_folder, tmp_path / "whole", CONFIGS["balanced"])
    assert digests(out) == digests(tmp_path / "whole") and not unfinished(out).exists()


def cut_off(model: Path, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prune(model, out, CONFIGS["balanced"], cut_off_at(32))


@pytest.mark.parametrize(
    "error", [FactorError("no"), OutputError("full"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_what_is_done_stays_whatever_ends_the_run(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    propagated, propagate = 0, calibrate.propagate

    def fail(*args: Any) -> None:
        nonlocal propagated
        propagated += 1
        if propagated == 2:
            raise error
        propagate(*args)

    monkeypatch.setattr(calibrate, "propagate", fail)
    with pytest.raises(TwofourError) as failed:
        prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"])
    assert (unfinished(tmp_path / "out") / "block-0.safetensors").exists()
    (note,) = failed.value.__notes__
    assert note.startswith(f"what is done is kept in {unfinished(tmp_path / 'out')}: give the command again to go on")
    manifest = prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"]).manifest
    assert propagated == 3 and check(tmp_path / "out").ok and manifest["fallbacks"] == []
    assert not unfinished(tmp_path / "out").exists()


def test_files_are_on_the_disk_before_what_they_replace_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be lost if the machine stopped: names that no sync of the folder has seen, bytes that no sync has."""
    safe: set[str] = set()
    written: set[str] = set()
    fsync, replace_, unlink = os.fsync, Path.replace, Path.unlink

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            safe.update(name for name in written if (path / name).exists())
        else:
            written.add(path.name.removesuffix(".part"))
        fsync(descriptor)

    def named(path: Path, target: Path) -> Path:
        assert target.name in written, f"{target.name} has its name before its bytes are on the disk"
        return replace_(path, target)

    def gone(path: Path, missing_ok: bool = False) -> None:
        if path.exists() and path.name.startswith("states-0."):
            assert {"block-1.safetensors", "states-1.0.safetensors", "states-1.1.safetensors"} <= safe
        unlink(path, missing_ok)

    block = calibrate.PrunedBlock({"a": torch.zeros(2, 4)}, {})
    batches = [Batch(Positions(at, 1, 2), torch.zeros(1, 2, 3), []) for at in range(2)]
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "out") as journal:
        journal.begin({})
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", named)
        monkeypatch.setattr(Path, "unlink", gone)
        journal.text(lambda: Calibration(torch.zeros(1, 2)))
        journal.save(0, block, batches)
        journal.save(1, block, batches)
        journal.save_training(training.Training(3, 1.0, 0.5, 0, []))
        raise KeyboardInterrupt
    assert {"tokens.safetensors", "training.safetensors"} <= safe


def test_a_full_disk_is_said_and_the_run_goes_on_later(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writes = journal.save_file, 0

    def full(*args: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 5:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(journal, "save_file", full)
    with pytest.raises(OutputError, match="is full; free some space and run again"):
        prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"])
    assert (unfinished(tmp_path / "out") / "block-0.safetensors").exists()
    prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"])
    assert check(tmp_path / "out").ok


def test_states_and_weights_come_back(tmp_path: Path) -> None:
    block = calibrate.PrunedBlock({"a": torch.randn(2, 4)}, {})
    batches = [Batch(Positions(0, 1, 2), torch.randn(1, 2, 3), [], torch.randn(1, 2, 3))]
    others = [Batch(Positions(0, 1, 2), torch.zeros(1, 2, 3), [])]
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "out") as first:
        first.begin({})
        first.save(0, block, batches)
        raise KeyboardInterrupt
    with Journal(tmp_path / "out") as second:
        second.begin({})
        (restored,) = list(second.restore(others))
        assert torch.equal(others[0].hidden, batches[0].hidden) and others[0].dense is not None
        assert batches[0].dense is not None and torch.equal(others[0].dense, batches[0].dense)
        assert torch.equal(restored.weights["a"], block.weights["a"])  # type: ignore[arg-type]


def test_the_minutes_of_all_processes_count(tmp_path: Path) -> None:
    now_s, at = 100.0, tmp_path / "out"

    def clock() -> float:
        return now_s

    block = calibrate.PrunedBlock({"a": torch.zeros(2, 4)}, {})
    saves: list[Any] = [
        lambda journal: journal.text(lambda: Calibration(torch.zeros(1, 2))),
        lambda journal: journal.save(0, block, []),
        lambda journal: journal.save(1, block, []),
        lambda journal: journal.save_training(training.Training(3, 1.0, 0.5, 0, [])),
    ]
    for processes, save in enumerate(saves):  # each takes 10 s until it saves, and 5 s that are lost
        with pytest.raises(KeyboardInterrupt), Journal(at, clock) as journal:
            journal.begin({})
            assert journal.spent_s == 10.0 * processes
            now_s += 10.0
            save(journal)
            now_s += 5.0
            raise KeyboardInterrupt
    with Journal(at, clock) as last:
        last.begin({})
        last.text(lambda: Calibration(torch.zeros(1, 2)))
        assert len(list(last.restore([]))) == 2 and last.restore_training() is not None and last.spent_s == 40.0


def test_what_is_done_needs_no_room_again(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(run.folder, "require_space", lambda out, size: needed.append(size))
    cut_off(tiny_model_folder, tmp_path / "out")
    (states,) = [path.stat().st_size for path in unfinished(tmp_path / "out").glob("states-0.0.*")]
    prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"])
    assert needed[1] < needed[0] - states


def test_one_process_at_a_time_is_in_a_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def again(step: Step) -> None:
        if not refused and step.stage == "pruning blocks":
            with pytest.raises(InputError) as second:
                prune(tiny_model_folder, tmp_path / "out", CONFIGS["wanda"])
            refused.append(str(second.value))

    prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"], again)
    assert refused == [
        f"{unfinished(tmp_path / 'out')} is in use by another run; wait for its end, or choose another name"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and check(tmp_path / "out").ok


def test_a_run_that_ends_before_it_did_anything_leaves_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"], cut_off_at(1))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_had_begun_to_write_goes(tiny_model_folder: Path, tmp_path: Path) -> None:
    cut_off(tiny_model_folder, tmp_path / "out")
    folder = unfinished(tmp_path / "out")
    (folder / ".out.killed.part").mkdir()
    for name in ("block-1.safetensors.part", "hidden-from-0", "dense.part-from-16"):
        (folder / name).write_text("")
    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model_folder, tmp_path / "out", CONFIGS["balanced"], cut_off_at(1))
    assert not [path for path in folder.iterdir() if "part" in path.name or "-from-" in path.name]
