"""The verb `check`. Exit status 1 if a fault was found."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twofour.prune.label.check import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a pruned folder, packed or dense")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.label.check import check

    report = check(args.folder)
    print(json.dumps(_document(report)) if args.json else _table(report))
    return 0 if report.ok else 1


def _document(report: "Report") -> dict[str, object]:
    kinds = {name: asdict(kind) | {"sparsity": kind.sparsity} for name, kind in report.kinds.items()}
    return {
        "folder": report.folder,
        "form": report.form,
        "ok": report.ok,
        "kinds": kinds,
        "dense": report.dense,
        "faults": report.faults,
    }


def _table(report: "Report") -> str:
    rows = [
        f"  {name:<12} {kind.linears:>4} linears {kind.weights:>13,} weights {kind.sparsity:>8.3%} zero"
        for name, kind in report.kinds.items()
    ]
    faults = [f"  fault: {fault}" for fault in report.faults]
    but = f", but for {len(report.dense)} linears that the label leaves dense" if report.dense else ""
    verdict = f"intact, strictly 2:4{but}" if report.ok else f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return "\n".join([f"{report.folder} ({report.form or 'unreadable'}): {verdict}", *rows, *faults])
