"""What is judged beside presets: its bytes by hand, and a real comparison of a tiny model."""

from pathlib import Path

import pytest

from twofour.bench.comparison.named import NamedArm
from twofour.bench.pruning import presets as pruning
from twofour.bench.pruning.judged import Dense, rivals
from twofour.bench.pruning.presets import Trials, compare_presets, table


def test_bytes_are_those_of_the_formats(tiny_model_folder: Path, tiny_pruned_folder: Path, tmp_path: Path) -> None:
    model = Dense(tiny_model_folder)
    weights = sum(rows * columns for rows, columns in model.shapes.values())
    runs = sum(rows * -(-columns // 64) for rows, columns in model.shapes.values())
    groups = sum(rows * -(-columns // 32) for rows, columns in model.shapes.values())
    item = model.linear_bytes // weights
    assert model.linear_bytes == weights * item and item in (2, 4)
    assert model.bytes_of(tiny_model_folder, dense_int8=True) == weights + 4 * runs
    positions = sum(rows * -(-columns // 8) for rows, columns in model.shapes.values())
    assert model.bytes_of(tiny_pruned_folder) == weights * item // 2 + positions
    dense, int8, four_bit = rivals(model, tmp_path / "work")
    assert [arm.bytes_in(model)["linear_bytes"] for arm in (dense, int8, four_bit)] == [
        model.linear_bytes,
        weights + 4 * runs,
        weights // 2 + 2 * groups,
    ]
    assert not (tmp_path / "work").exists()  # nothing was made only to count bytes


def test_folders_and_rivals_are_judged_once(
    tiny_model_folder: Path, tiny_pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("a line of words, and another one\n" * 40)
    asked = Trials(
        *(str(tiny_model_folder), text, [], ["first"], [0]),
        **{"window": 16, "rivals": True, "arms": [NamedArm("2of4", str(tiny_pruned_folder), "sparse")]},
    )
    found = {arm["name"]: arm for arm in compare_presets(asked, tmp_path / "work", out)["arms"]}
    assert list(found) == ["dense", "dense int8", "dense 4-bit", "2of4"]
    assert found["dense"]["kl_nats"] == 0 and found["dense"]["kind"] == "dense"
    assert 0 < found["dense int8"]["kl_nats"] < found["dense 4-bit"]["kl_nats"]
    assert found["dense int8"]["flags"] == ["--dense-values", "int8"]
    lines = table({"runs": [], "arms": list(found.values())}).splitlines()
    assert lines[4].startswith("| dense 4-bit (simulated, no kernel) | ") and lines[2].startswith("| dense | 1.000 | ")
    monkeypatch.setattr(pruning.child, "twofour", None)  # must not be called
    assert len(compare_presets(asked, tmp_path / "work", out)["arms"]) == 4
