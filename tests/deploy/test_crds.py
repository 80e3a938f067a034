"""Custom resources that we write or render, against our schemas of them, and those against their makers' own.

TWOFOUR_CRDS names a folder of custom resource definitions of KServe, KEDA and prometheus-operator: then each of our
schemas is compared with theirs, and theirs accept what we write.
"""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from charts import VALUE_SETS, rendered
from custom_resources import (
    FILES,
    Document,
    Schema,
    closed,
    definitions,
    differences,
    errors,
    faults,
    is_custom,
    kinds,
)
from jsonschema import Draft202012Validator
from kserve import documents, one

CRDS = os.environ.get("TWOFOUR_CRDS")


def objects(schema: Any, at: str) -> Iterator[tuple[str, Schema]]:
    """Every schema of an object, wherever it stands."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield at, schema
        for name, inner in schema.items():
            yield from objects(inner, f"{at}.{name}")


@pytest.mark.parametrize("file", FILES)
def test_a_schema_is_one_and_names_every_field(file: str) -> None:
    Draft202012Validator.check_schema(FILES[file])
    assert [at for at, schema in objects(FILES[file], file) if "additionalProperties" not in schema] == []
    assert "$comment" in FILES[file]


@pytest.mark.tools
def test_each_schema_is_used() -> None:
    used = {(each["apiVersion"], each["kind"]) for each in (*documents(), *of_the_chart())}
    assert set(kinds()) <= used


def of_the_chart() -> list[Document]:
    return [document for values in VALUE_SETS for document in rendered(values)]


@pytest.mark.parametrize("document", documents(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_the_files_for_kserve_are_right(document: Document) -> None:
    assert not is_custom(document) or faults(document) == []


@pytest.mark.tools
@pytest.mark.parametrize("values", VALUE_SETS, ids=lambda values: values.stem)
def test_what_the_chart_renders_is_right(values: Path) -> None:
    found = [fault for document in rendered(values) if is_custom(document) for fault in faults(document)]
    assert found == []


def service() -> Document:
    return copy.deepcopy(one("LLMInferenceService", "twofour"))


def without_a_model(it: Document) -> None:
    del it["spec"]["model"]


def with_a_field_too_many(it: Document) -> None:
    it["spec"]["template"]["containers"][0]["lifecycles"] = {}


def of_another_scheme(it: Document) -> None:
    it["spec"]["model"]["uri"] = "file:///srv/model"


def with_a_number_as_text(it: Document) -> None:
    it["spec"]["replicas"] = "2"


def with_workers_alone(it: Document) -> None:
    it["spec"]["worker"] = {}


def of_an_older_version(it: Document) -> None:
    it["apiVersion"] = "serving.kserve.io/v1alpha1"


SPOILED = [
    without_a_model,
    with_a_field_too_many,
    of_another_scheme,
    with_a_number_as_text,
    with_workers_alone,
    of_an_older_version,
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_wrong_one_is_refused(spoil: Callable[[Document], None]) -> None:
    document = service()
    assert faults(document) == []
    spoil(document)
    assert len(faults(document)) == 1


def test_a_difference_is_found() -> None:
    """Between a schema of ours and one of theirs that is otherwise."""
    theirs = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"type": "object", "required": ["groups", "more"], "properties": {"groups": {"type": "string"}}},
        },
    }
    assert differences("prometheusrule.json", theirs) == [
        "$.spec must have ['more'] there alone",
        "$.spec.groups is array here and string there",
    ]


@pytest.fixture(scope="module")
def theirs() -> dict[tuple[str, str], Schema]:
    if CRDS is None:
        pytest.skip("TWOFOUR_CRDS names no folder of custom resource definitions")
    return definitions(Path(CRDS))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind[1])
def test_their_makers_know_each_field(theirs: dict[tuple[str, str], Schema], kind: tuple[str, str]) -> None:
    assert differences(kinds()[kind], theirs[kind]) == []


@pytest.mark.tools
def test_their_makers_accept_what_we_write(theirs: dict[tuple[str, str], Schema]) -> None:
    schemas = {kind: closed(theirs[kind]) for kind in kinds()}
    custom = [each for each in [*documents(), *of_the_chart()] if is_custom(each)]
    assert custom
    assert [it for each in custom for it in errors(schemas[(each["apiVersion"], each["kind"])], each)] == []
