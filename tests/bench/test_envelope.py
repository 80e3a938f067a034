"""All documents have one envelope, and docs/documents.md says what it is."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, OF_URLS, findings, run
from several_findings import several

from twofour.bench.comparison.document import document as comparison
from twofour.bench.envelope import Envelope, checked
from twofour.bench.load.run import document
from twofour.prune.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "documents.md").read_text()
SCHEMA = ROOT / "docs" / "document.schema.json"
# Where a kind and its version stand; those that need torch are not loaded here.
LIGHT = {
    "twofour.bench.run": "load.run",
    "twofour.bench.repeat": "load.repeat",
    "twofour.bench.sweep": "sweep.document",
    "twofour.bench.compare": "comparison.document",
    "twofour.bench.gate": "gate.judge",
    "twofour.bench.selftest": "proof.selftest",
    "twofour.bench.proof": "proof.proof",
    "twofour.bench.decode": "decode.document",
    "twofour.bench.vllm": "vllm.document",
}


def test_the_schema_in_docs_is_the_one_that_documents_are_held_to() -> None:
    assert json.loads(SCHEMA.read_text()) == Envelope.model_json_schema()


def test_the_page_has_every_field_as_the_schema_says_it() -> None:
    table = PAGE.split("## The envelope")[1].split("- Times")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", table, re.M))
    assert rows == {name: field.description for name, field in Envelope.model_fields.items()}


def test_the_page_has_every_kind_with_its_version() -> None:
    listed = dict(re.findall(r"^\| `(twofour\.bench\.\w+)` \| (\d+) \|", PAGE, re.M))
    sources = (path.read_text() for path in (ROOT / "bench").rglob("*.py"))
    kinds = {kind for text in sources for kind in re.findall(r'^[A-Z]+ = "(twofour\.bench\.\w+)"', text, re.M)}
    assert kinds - {"twofour.bench.schedule"} == set(listed)
    for kind, module in LIGHT.items():
        made = import_module(f"twofour.bench.{module}")
        assert (kind, int(listed[kind])) == (made.KIND, made.SCHEMA_VERSION)


@pytest.mark.parametrize("file", sorted((ROOT / "bench" / "results").glob("*.json")), ids=lambda file: file.name)
def test_kept_results_have_it(file: Path) -> None:
    kept = json.loads(file.read_text())
    assert checked(kept, file.name) is kept
    assert kept["versions"]["twofour"] and kept["hardware"]


def test_what_is_written_today_has_it() -> None:
    single = document(run(CLOSED, 0, 0.01), with_records=True)
    made: list[dict[str, Any]] = [single, comparison(findings(OF_URLS)), several()]
    for each in made:
        plain = json.loads(json.dumps(each, allow_nan=False))
        held = Envelope.model_validate(plain)
        assert held.schema_version == plain["schema_version"] and held.valid is plain["valid"] and held.started


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([], "the whole: Input should be a valid dictionary"),
        ({}, "kind: Field required"),
        ({"kind": "other"}, "kind: String should match"),
        ({"kind": "twofour.bench.run", "schema_version": 0}, "schema_version: Input should be greater"),
        ({"kind": "twofour.bench.run", "valid": "yes"}, "valid: Input should be a valid boolean"),
    ],
)
def test_what_is_no_document_is_refused(found: Any, why: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"x.json is no document of a verb of bench ({why}")):
        checked(found, "x.json")
