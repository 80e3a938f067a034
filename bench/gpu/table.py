"""A file of rows for the eye: products as a block for each matrix, everything else as it was found, in columns."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
ASIDE = {"failed", "where", "lines", "tests"}  # what has a place of its own
UNITS = {"bytes_per_s": (1e9, "GB/s"), "flop_per_s": (1e12, "TFLOP/s"), "seconds": (1.0, "s"), "_s": (1e-3, "ms")}


def table(document: Mapping[str, Any]) -> str:
    rows, left = document["rows"], document["left_for_want_of_time"]
    good = [row for row in rows if "failed" not in row]
    blocks = _products(good) if document["stage"] == "products" else _columns(good)
    lines = [*_heading(document), *blocks, *_profiles(good), *_failures(rows)]
    return "\n".join([*lines, *([f"left for want of time: {len(left)} cells"] if left else [])])


def _heading(document: Mapping[str, Any]) -> list[str]:
    made = document["made_by"]
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "triton", "transformers"))
    return [f"{document['stage']}: on {made['device']}, {versions}, cuda {made['cuda']}, code {made['code']}"]


def _columns(rows: Sequence[Row]) -> list[str]:
    """Rows of the same names stand together."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(name for name in row if name not in ASIDE), []).append(row)
    return [line for names, group in groups.items() for line in _block(names, group)]


def _block(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    cells = [[_title(name) for name in names], *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return ["", *("  ".join(map(str.rjust, line, widths)) for line in cells)]


def _products(rows: Sequence[Row]) -> list[str]:
    """Median microseconds of each contender, and how much faster than dense it is."""
    lines: list[str] = []
    for place in dict.fromkeys((row["model"], row["matrix"], row["rows"], row["columns"]) for row in rows):
        own = [row for row in rows if (row["model"], row["matrix"], row["rows"], row["columns"]) == place]
        names = dict.fromkeys(name for row in own for name in row["contenders"])
        cells = [["tokens", *names]]
        cells += [[str(row["tokens"]), *(_contender(row["contenders"], name) for name in names)] for row in own]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines += ["", f"{place[0]}, {place[1]}: {place[2]:,} x {place[3]:,}, microseconds (times as fast as dense)"]
        lines += ["  ".join(map(str.rjust, line, widths)) for line in cells]
        lines += [f"  {name}: {why}" for name, why in _absent(own).items()]
    return lines


def _contender(found: Mapping[str, Row], name: str) -> str:
    if "median_s" not in found.get(name, {}):
        return "-"
    dense = found.get("dense", {}).get("median_s")
    faster = f" ({dense / found[name]['median_s']:.2f}x)" if dense and name != "dense" else ""
    return f"{found[name]['median_s'] * 1e6:.1f}{faster}"


def _absent(rows: Sequence[Row]) -> dict[str, str]:
    return {name: each["failed"] for row in rows for name, each in row["contenders"].items() if "failed" in each}


def _profiles(rows: Sequence[Row]) -> list[str]:
    found = [row for row in rows if "lines" in row]
    return [line for row in found for line in ("", _named(row), *row["lines"])]


def _failures(rows: Sequence[Row]) -> list[str]:
    found = [f"FAILED  {_named(row)}: {row['failed']}" for row in rows if "failed" in row]
    return ["", *found] if found else []


def _named(row: Row) -> str:
    plain = {name: value for name, value in row.items() if name not in ASIDE and not isinstance(value, dict)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _unit(name: str) -> tuple[float, str] | None:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), None)


def _title(name: str) -> str:
    unit = _unit(name)
    return f"{name} [{unit[1]}]" if unit else name


def _cell(name: str, value: object) -> str:
    unit = _unit(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and unit:
        return f"{value / unit[0]:.3f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
