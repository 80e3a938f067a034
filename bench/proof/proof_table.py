"""The proof as text for a person."""

from typing import Any

VERDICTS = {True: "passed", False: "FAILED", None: "-"}
_UNITS = {
    "s": (1, " s", 2),
    "ms": (1000, " ms", 2),
    "share": (100, " %", 2),
    "/s": (1, "", 0),
    "MB": (1, " MB", 1),
    "": (1, "", 0),
}


def table(found: dict[str, Any]) -> str:
    names = sorted({name for row in found["rows"] for name in row["peers"]})
    head = f"{'':5}{'':48}{'value':>12}{'target':>16}  {'':8}" + "".join(f"{name:>12}" for name in names)
    lines = [
        f"on: {found['hardware']['summary']}; {_placed(found)}",
        "",
        head.rstrip(),
        *(line for row in found["rows"] for line in _row(row, names)),
        *(["", *(f"{name} said nothing: {why}" for name, why in found["silent_peers"].items())]),
        "",
        f"CPU pressure {quantity(found['cpu_pressure'], 'share')} at worst, in our runs"
        + ("" if (found["cpu_pressure"] or 0) <= 0.1 else ": something else ran here; do not quote these figures"),
        "PASSED" if found["valid"] else "FAILED",
    ]
    return "\n".join(lines)


def _placed(found: dict[str, Any]) -> str:
    return "client and mock on a CPU each" if found["client_and_mock_apart"] else "client and mock share a CPU"


def _row(row: dict[str, Any], names: list[str]) -> list[str]:
    limit = f"{'<=' if row['most'] else '>='} {quantity(row['limit'], row['unit'])}"
    line = f"{row['id']:5}{row['what']:48}{quantity(row['value'], row['unit']):>12}{limit:>16}"
    others = "".join(f"{_other(row, name):>12}" for name in names)
    lines = [f"{line}  {VERDICTS[row['passed']]:8}{others}".rstrip()]
    return [*lines, f"{'':5}  {row['note']}"] if row["note"] else lines


def _other(row: dict[str, Any], name: str) -> str:
    return quantity(row["peers"][name], row["unit"]) if name in row["peers"] else ""


def quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    times, sign, digits = _UNITS["ms" if unit == "s" and abs(value) < 1 else unit]
    return f"{value * times:,.{digits}f}{sign}"
