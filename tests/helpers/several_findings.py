"""Findings of several arms as they would be measured, with known times and losses."""

from dataclasses import replace
from typing import Any

from bench_findings import CLOSED, OF_URLS, arm, findings

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.comparison.named import NamedArm
from twofour.bench.comparison.quality import Quality
from twofour.bench.comparison.several_document import document

DENSE, INT8, SPARSE, MIXED = "dense", "dense-int8", "2of4", "mixed"
TOKEN_S = {
    DENSE: OF_URLS["dense"],
    INT8: [0.0056, 0.0109, 0.0066, 0.0060],
    SPARSE: OF_URLS["sparse"],
    MIXED: [0.0071, 0.0141, 0.0084, 0.0078],
}
LINEARS = {DENSE: 1000, INT8: 531, SPARSE: 316, MIXED: 560}
LOST = {INT8: (17.3, 0.003), SPARSE: (24.9, 0.41), MIXED: (20.0, 0.2)}
NAMED = {
    DENSE: NamedArm(DENSE, "models/dense"),
    INT8: NamedArm(INT8, "models/dense", flags=("--dense-values", "int8")),
    SPARSE: NamedArm(SPARSE, "models/2of4", "sparse"),
    MIXED: NamedArm(MIXED, "models/mixed", "mixture"),
}
QUALITIES = {name: Quality(17.2, *lost, 0.7, 8176, "wiki.txt", "twofour eval") for name, lost in LOST.items()}


def several(
    token_s: dict[str, list[float]] = TOKEN_S,
    qualities: dict[str, Quality] = QUALITIES,
    experiment: Experiment = CLOSED,
    **changed: Any,
) -> dict[str, Any]:
    facts = {name: replace(arm(name, LINEARS[name]), command=["python", "serve"]) for name in token_s}
    found = findings(token_s, experiment, **({"arms": facts, "quality": None} | changed))
    return document(found, {name: NAMED[name] for name in token_s}, qualities)
