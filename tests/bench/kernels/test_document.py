"""The document and its table from scripted seconds."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from twofour.bench.hardware import Hardware
from twofour.bench.kernels import measure
from twofour.bench.kernels.ceiling import Ceiling
from twofour.bench.kernels.document import document
from twofour.bench.kernels.grid import Grid, Model
from twofour.bench.kernels.measure import Cell, Entry, Findings
from twofour.bench.kernels.race import Lap
from twofour.bench.kernels.table import table
from twofour.bench.load.gates import Gate
from twofour.serve.kernels.race import TRAFFIC

MACHINE = Hardware("Linux", "a CPU", 4, ("avx2",), None, ())
SMALL, LARGE, HEAD = (4, 8), (16, 8), (100, 8)
GRID = Grid((Model("m", {SMALL: 3, LARGE: 1}, HEAD),), tokens=(1, 128), rounds=2)
CEILINGS = (Ceiling("fast read", 1000, (1.0, 1.0)), Ceiling("slow read", 1000, (4.0, 4.0)))  # 1000 and 250 bytes/s


def entry(weight_bytes: int, *seconds: float, note: str | None = None) -> Entry:
    return Entry("a kernel", weight_bytes, 5, note, Lap(10, seconds))


def cell(matrix: tuple[int, int], tokens: int, served: tuple[float, float], torch: tuple[float, float]) -> Cell:
    nbytes = matrix[0] * matrix[1]
    return Cell("linear", matrix, tokens, {"served": entry(nbytes, *served), "torch bf16": entry(2 * nbytes, *torch)})


CELLS = (
    cell(SMALL, 1, (0.1, 0.3), (0.4, 0.6)),
    cell(LARGE, 1, (1.0, 2.0), (2.0, 2.0)),
    cell(SMALL, 128, (1.0, 1.0), (1.0, 1.0)),
    cell(LARGE, 128, (2.0, 2.01), (1.0, 1.01)),
    Cell("lm_head", HEAD, 1, {"torch bf16": entry(1600, 4.0, 4.0)}),
)


def made(cells: tuple[Cell, ...] = CELLS, pressure: float = 0.01, **changes: Any) -> dict[str, Any]:
    gates = (Gate("cpu_pressure", pressure, 0.1, "share", "stop it"),)
    found = Findings(GRID, datetime(2026, 1, 2, tzinfo=UTC), "avx2", 4096, 2048, CEILINGS, gates, cells, **changes)
    made_by = {"command": ["twofour", "bench", "kernels"], "versions": {"torch": "2"}, "hardware": MACHINE.as_dict()}
    made = document(found, made_by, "AVX2", {"A": "b"})
    read: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return read


def test_a_cell_has_its_raw_seconds_and_what_follows_from_them() -> None:
    first = made()["cells"][0]
    assert (first["part"], first["rows"], first["columns"], first["tokens"]) == ("linear", 4, 8, 1)
    served = first["contenders"]["served"]
    assert served["seconds"] == [0.1, 0.3] and served["median_s"] == pytest.approx(0.2)
    assert (served["p10_s"], served["p90_s"]) == pytest.approx((0.12, 0.28))
    assert served["weight_bytes"] == 32 and served["bytes_per_s"] == pytest.approx(160)
    assert served["share_of_ceiling"] == pytest.approx(0.16)
    assert (served["calls"], served["copies"]) == (10, 5)
    ratio = first["ratios"]["torch bf16 / served"]
    assert ratio["point"] == pytest.approx((4.0 * 2.0) ** 0.5) and ratio["n"] == 2


def test_the_sum_counts_every_linear_and_pairs_round_by_round() -> None:
    found = made()["sums"]
    assert [(each["model"], each["tokens"]) for each in found] == [("m", 1), ("m", 128)]
    served, torch = found[0]["contenders"]["served"], found[0]["contenders"]["torch bf16"]
    assert served["seconds"] == pytest.approx([3 * 0.1 + 1.0, 3 * 0.3 + 2.0])
    assert torch["seconds"] == pytest.approx([3 * 0.4 + 2.0, 3 * 0.6 + 2.0])
    assert served["weight_bytes"] == 3 * 32 + 128
    ratio = found[0]["ratios"]["torch bf16 / served"]["point"]
    assert ratio == pytest.approx((3.2 / 1.3 * 3.8 / 2.9) ** 0.5)


def test_a_sum_that_lacks_a_matrix_is_not_made() -> None:
    assert [each["tokens"] for each in made(CELLS[1:])["sums"]] == [128]


def test_a_contender_that_refused_a_matrix_is_in_no_sum() -> None:
    only = Cell("linear", SMALL, 1, dict(CELLS[0].entries) | {"2:4 triton": entry(32, 1.0, 1.0)})
    found = made((only, *CELLS[1:]))
    assert "2:4 triton" in found["cells"][0]["contenders"] and "2:4 triton" not in found["sums"][0]["contenders"]


def test_the_ceiling_says_what_each_format_can_reach() -> None:
    ceiling = made()["ceiling"]
    assert (ceiling["bytes_per_s"], ceiling["others"][0]["bytes_per_s"]) == (1000, 250)
    formats = ceiling["formats"]
    assert formats["2:4 bf16"]["against_dense_bf16"] == pytest.approx(16 / 9)
    assert formats["2:4 int8"]["against_dense_bf16"] == pytest.approx(3.2)
    assert formats["dense bf16"]["s_per_million_weights"] == pytest.approx(2000)


def test_the_verdict_is_in_the_document() -> None:
    judged = made()["never_slower"]
    assert [(each["rows"], each["tokens"]) for each in judged["failures"]] == [(16, 128)]
    assert judged["judged"] == 4 and judged["weighted"][0]["share_of_calls"] == pytest.approx(TRAFFIC[1] + TRAFFIC[128])


def test_valid_unless_a_gate_failed_or_nothing_was_measured() -> None:
    assert made()["valid"] and not made(pressure=0.2)["valid"]
    assert not made((), not_measured={"everything": "no device"})["valid"]


@pytest.mark.parametrize(("fastest_s", "passed"), [(0.03, True), (0.02, False)])
def test_nothing_is_faster_than_memory(fastest_s: float, passed: bool) -> None:
    found = (*CELLS, cell(SMALL, 2, (fastest_s, fastest_s), (1.0, 1.0)))
    gate = measure._share_gate(found, CEILINGS[0])
    assert gate.value == pytest.approx(0.032 / fastest_s) and gate.passed is passed


def test_the_table_shows_the_ceiling_then_sums_then_matrices() -> None:
    text = table(made())
    places = [text.index(part) for part in ("ceiling: ", "m: all 4 linears", "linear 4 x 8", "lm_head 100 x 8")]
    assert places == sorted(places)
    assert "held by A=b" in text
    assert "SLOWER  linear 16 x 8, 128 tokens (a kernel): 0.50x [0.49, 0.52], limit 0.95" in text
    assert "FAILED: 1 of 4 cells are slower" in text and text.endswith("VALID")
    assert "200.000 ±40%" in text and "(16%)" in text


def test_the_table_says_what_served_has_to_say() -> None:
    noted = Cell(
        "linear", SMALL, 1, {"served": entry(32, 1.0, 1.0, note="expanded"), "torch bf16": entry(64, 1.0, 1.0)}
    )
    assert "linear 4 x 8, served by a kernel (expanded)" in table(made((noted, *CELLS[1:])))


def test_nothing_measured_is_said_and_nothing_else() -> None:
    text = table(made((), not_measured={"everything": "no device"}))
    assert text.endswith("not measured: everything: no device") and "VALID" not in text
