"""The verb: a real run on small matrices, exit codes, instruction sets, and input that is refused."""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from twofour import cli
from twofour.bench.commands import INVALID
from twofour.bench.commands import kernels as kernels_command
from twofour.bench.commands.kernels import SLOWER, status
from twofour.bench.kernels import ceiling, contenders, isa, measure
from twofour.bench.kernels.contenders import Form
from twofour.bench.kernels.grid import Grid, Model, of_folder, of_shape
from twofour.bench.kernels.race import race
from twofour.bench.kernels.table import table
from twofour.bench.targets.shapes import SHAPES
from twofour.prune.errors import InputError, TwofourError
from twofour.prune.format.packed import Packed
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import extension

needs_kernels = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory and little time."""
    monkeypatch.setattr(ceiling, "LEAST_BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr(ceiling, "PASSES", 2)
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 1 << 14)
    monkeypatch.setattr(measure, "race", lambda turns, rounds, target_s: race(turns, rounds, target_s / 100))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(["bench", "kernels", *words])
    return code, capsys.readouterr().out


@needs_kernels
@pytest.mark.usefixtures("brief")
def test_a_run_over_a_model_folder(
    tiny_pruned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "kernels.json"
    words = ["--model", str(tiny_pruned_folder), "--tokens", "300,1", "--rounds", "2", "--out", str(out), "--json"]
    code, printed = run(capsys, *words)
    document = json.loads(out.read_text())
    assert document == json.loads(printed)
    assert code == (0 if document["valid"] else INVALID)
    assert document["models"][0]["linears"] == [
        {"rows": rows, "columns": columns, "count": count}
        for rows, columns, count in ((64, 64, 4), (32, 64, 4), (96, 64, 4), (64, 96, 2))
    ]
    assert_measured(document)
    assert torch.get_num_threads() == threads
    assert cli.main(["bench", "report", str(out)]) == 0
    assert "tiny-2of4: all 14 linears" in capsys.readouterr().out


def assert_measured(document: dict[str, Any]) -> None:
    everyone = {"served", "2:4 bf16", "2:4 int8", "torch bf16", "torch int8", "dense twin"}
    cells = {(cell["part"], cell["rows"], cell["columns"], cell["tokens"]): cell for cell in document["cells"]}
    linears = [("linear", 64, 64), ("linear", 32, 64), ("linear", 96, 64), ("linear", 64, 96)]
    assert set(cells) == {(*place, tokens) for place in linears for tokens in (1, 300)} | {("lm_head", 320, 64, 1)}
    for (part, *_), cell in cells.items():
        assert cell["contenders"].keys() == (
            everyone if part == "linear" else {"torch bf16", "torch int8", "dense twin"}
        )
        for figures in cell["contenders"].values():
            assert len(figures["seconds"]) == 2 and min(figures["seconds"]) > 0
            assert figures["copies"] * figures["weight_bytes"] > 2 << 14
    assert [each["tokens"] for each in document["sums"]] == [1, 300]
    assert document["isa"] == cpu.available() and document["clock"] == "CPU time of the thread"
    assert document["never_slower"]["judged"] == 8


WORDS = ("--tokens", "1,64", "--rounds", "2")


@needs_kernels
@pytest.mark.usefixtures("brief")
def test_a_wrong_product_is_dropped_not_timed(
    tiny_pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, out = cpu.linear, tmp_path / "kernels.json"
    monkeypatch.setattr(cpu, "linear", lambda *args, **named: right(*args, **named) * 1.05)
    code, printed = run(capsys, "--model", str(tiny_pruned_folder), *WORDS, "--out", str(out))
    document = json.loads(out.read_text())
    assert code == INVALID and not document["valid"] and document["complete"]
    assert {name for cell in document["cells"] for name in cell["contenders"]} == {"torch bf16", "torch int8"}
    assert len(document["cells"]) == 10
    dropped = {each["contender"] for each in document["dropped"]}
    assert dropped == {"served", "2:4 bf16", "2:4 int8", "dense twin"}
    assert all("multiplies wrongly" in each["reason"] for each in document["dropped"])
    assert "dropped: served, linear 64 x 64, 1 tokens: served (cpu) multiplies wrongly" in printed


@needs_kernels
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("when", ["built", "copied", "checked", "timed"])
def test_a_contender_that_fails_costs_no_other_its_figures(
    tiny_pruned_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    """At whatever moment, and in a cell only where it fails there."""
    real, calls = contenders.served, itertools.count()

    def fail_at(number: int) -> None:
        if next(calls) == number:
            raise RuntimeError("out of resources\nmore")

    def product(x: torch.Tensor) -> torch.Tensor:
        fail_at(0 if when == "checked" else 1)  # of one cell
        return x @ weight.t()

    def served(packed: Packed) -> Form:
        nonlocal weight
        if when == "built" and packed.shape == (96, 64):
            raise RuntimeError("out of resources\nmore")
        form = real(packed)
        if packed.shape != (96, 64) or when == "built":
            return form
        weight = packed.unpack()
        return replace(form, copies=failing() if when == "copied" else itertools.repeat(product))

    def failing() -> Iterator[contenders.Product]:
        yield product
        raise RuntimeError("out of resources")

    weight = torch.empty(0)
    monkeypatch.setattr(contenders, "served", served)
    code, printed = run(capsys, "--model", str(tiny_pruned_folder), *WORDS, "--json")
    document = json.loads(printed)
    names = {(cell["rows"], cell["columns"], cell["tokens"]): set(cell["contenders"]) for cell in document["cells"]}
    (dropped,) = document["dropped"]
    whole = when in ("built", "copied")
    assert code == INVALID and dropped["reason"] == "RuntimeError: out of resources"
    assert dropped["contender"] == ("all" if when == "copied" else "served") and dropped["rows"] == 96
    assert dropped["tokens"] == (None if whole else 1)
    assert "served" in names[64, 64, 1] and "served" in names[64, 96, 64]
    if when != "copied":
        assert "served" not in names[96, 64, 1] and "torch bf16" in names[96, 64, 1]
        assert ("served" in names[96, 64, 64]) != whole
    assert table(document)


@needs_kernels
@pytest.mark.usefixtures("brief")
def test_what_was_measured_is_on_disk_after_every_cell_and_stays_after_an_interrupt(
    tiny_pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, seen = tmp_path / "kernels.json", list[int]()
    timed = measure.race

    def racing(*args: Any) -> dict[str, Any]:
        seen.append(len(json.loads(out.read_text())["cells"]) if out.exists() else 0)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return timed(*args)

    monkeypatch.setattr(measure, "race", racing)
    code, printed = run(capsys, "--model", str(tiny_pruned_folder), *WORDS, "--out", str(out))
    document = json.loads(out.read_text())
    assert seen == [0, 1, 2, 3] and len(document["cells"]) == 3
    assert code == INVALID and not document["complete"] and not document["valid"]
    assert document["ceiling"]["bytes_per_s"] > 0 and "incomplete: it ended before all was measured" in printed


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("passed", [None, False, True])
@pytest.mark.parametrize("valid", [False, True])
def test_exit_codes(valid: bool, passed: bool | None, verify: bool) -> None:
    code = status({"valid": valid, "never_slower": {"passed": passed}}, verify)
    assert code == (SLOWER if verify and passed is False else 0 if valid else INVALID)
    assert SLOWER not in (0, 1, 2, INVALID)


def test_without_a_gpu_cuda_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, printed = run(capsys, "--device", "cuda", "--verify-never-slower")
    assert code == INVALID and "not measured: everything: this machine has no CUDA device" in printed


@needs_kernels
def test_an_instruction_set_that_is_missing_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension._EXTENSION, "isas", lambda: ["avx2"], raising=False)
    found = measure.measure(Grid((of_shape("smollm2-135m"),), (1,), isa="avx512"))
    assert found.cells == () and found.not_measured == {"everything": "this machine has no avx512; it has avx2"}


@needs_kernels
def test_our_kernels_are_held_and_let_go_again() -> None:
    before, known = cpu.available(), extension.loaded().isas()  # type: ignore[union-attr]
    with isa.held(known[-1]) as reason:
        assert reason is None and cpu.available() == known[-1]
    assert cpu.available() == before


def test_torch_is_held_before_it_is_loaded_or_not_at_all() -> None:
    with pytest.raises(InputError, match="torch is loaded already and not held to avx2"):
        isa.hold_torch("avx2")
    code = (
        "from twofour.bench.kernels import isa; isa.hold_torch('avx2')\n"
        "import torch; print(torch.backends.cpu.get_cpu_capability(), isa.torch_environment())"
    )
    free = {name: value for name, value in os.environ.items() if name not in isa.TORCH_ENVIRONMENT["avx2"]}
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=True)
    capability, _, environment = done.stdout.partition(" ")
    assert capability in ("AVX2", "DEFAULT", "NO AVX")  # the last two: of a processor without AVX2
    assert environment.strip() == str(isa.TORCH_ENVIRONMENT["avx2"])


def test_known_shapes_have_their_linears_and_head() -> None:
    for name, shape in SHAPES.items():
        model = of_shape(name)
        assert model == Model(name, shape.linears(), (shape.vocab, shape.hidden))
    assert sum(of_shape("smollm2-135m").linears.values()) == 210


def test_a_dense_and_a_packed_folder_have_the_same_matrices(tiny_model_folder: Path, tiny_pruned_folder: Path) -> None:
    dense, packed = of_folder(tiny_model_folder), of_folder(tiny_pruned_folder)
    assert dense.linears == packed.linears and dense.head == packed.head == (320, 64)
    config = json.loads((tiny_pruned_folder / "config.json").read_text())
    config["quantization_config"]["ignore"] += ["model.layers.0.mlp.down_proj"]
    (tiny_pruned_folder / "config.json").write_text(json.dumps(config))
    assert of_folder(tiny_pruned_folder).linears == dense.linears | {(64, 96): 1}


def test_matrices_of_two_models_are_measured_once() -> None:
    models = (Model("a", {(4, 8): 1, (8, 8): 2}, (9, 8)), Model("b", {(8, 8): 5, (4, 4): 1}, (9, 8)))
    both = Grid(models, (1, 64, 65))
    assert both.linears == [(4, 8), (8, 8), (4, 4)] and both.heads == [(9, 8)] and both.head_tokens == [1, 64]


@pytest.mark.parametrize(
    "words",
    [
        *(["--tokens", "0"], ["--tokens", "1,1"], ["--tokens", "some"], ["--rounds", "1"], ["--threads", "0"]),
        ["--threads", "100000"],
        *(["--shapes", "gpt-5"], ["--model", "/nowhere"], ["--isa", "avx2", "--device", "cuda"]),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "--isa" in words:
        args = argparse.ArgumentParser()
        kernels_command.add_arguments(args)
        with pytest.raises(InputError, match="leave it out with --device cuda"):
            kernels_command._grid(args.parse_args(words))
        return
    assert cli.main(["bench", "kernels", *words]) == 1
    assert "error: " in capsys.readouterr().err


def test_an_existing_result_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert cli.main(["bench", "kernels", "--out", str(tmp_path / "old.json")]) == 1
    assert "exists already" in capsys.readouterr().err and (tmp_path / "old.json").read_text() == "{}"


def test_a_result_without_a_place_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "kernels", "--out", str(tmp_path / "nowhere" / "new.json")]) == 1
    captured = capsys.readouterr()
    assert "is no folder" in captured.err and "ceiling" not in captured.err


@needs_kernels
@pytest.mark.usefixtures("brief")
def test_a_place_that_is_lost_while_measuring_loses_no_table(
    tiny_pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, timed = tmp_path / "place", measure.race
    place.mkdir()

    def racing(*args: Any) -> dict[str, Any]:
        shutil.rmtree(place, ignore_errors=True)
        return timed(*args)

    monkeypatch.setattr(measure, "race", racing)
    words = ["--model", str(tiny_pruned_folder), "--tokens", "1", "--rounds", "2"]
    assert cli.main(["bench", "kernels", *words, "--out", str(place / "kernels.json")]) == 1
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err and "incomplete" not in captured.out and "lm_head" in captured.out


def test_odd_inputs_cannot_be_2_4() -> None:
    with pytest.raises(TwofourError, match="7 x 6 cannot be 2:4"):
        Grid((Model("odd", {(7, 6): 1}, None),), (1,))
