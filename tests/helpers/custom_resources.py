"""What may stand in a custom resource: our own schemas of what we write, and how they stand to those of its makers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from deployed import ROOT
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = ROOT / "tests" / "deploy" / "crds"
FILES = {file.name: json.loads(file.read_text()) for file in sorted(SCHEMAS.glob("*.json"))}
REGISTRY: Any = Registry().with_resources([(name, Resource.from_contents(text)) for name, text in FILES.items()])
# Groups of Kubernetes itself; what is of another one is a custom resource.
BUILT_IN = {"", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}

Schema = dict[str, Any]
Document = dict[str, Any]


def kinds() -> dict[tuple[str, str], str]:
    """The schema's file by apiVersion and kind."""
    fields = {name: schema["properties"] for name, schema in FILES.items() if "kind" in schema.get("properties", {})}
    return {(own["apiVersion"]["const"], kind): name for name, own in fields.items() for kind in own["kind"]["enum"]}


def is_custom(document: Document) -> bool:
    return document["apiVersion"].rpartition("/")[0] not in BUILT_IN


def faults(document: Document) -> list[str]:
    """What a custom resource has that it must not have; empty: nothing."""
    file = kinds().get((document["apiVersion"], document["kind"]))
    if file is None:
        return [f"tests/deploy/crds has no schema of {document['kind']} of {document['apiVersion']}; write one"]
    return errors(FILES[file], document)


def errors(schema: Schema, document: Document) -> list[str]:
    found = Draft202012Validator(schema, registry=REGISTRY).iter_errors(document)
    return [f"{document['kind']} {document['metadata']['name']}: {each.json_path}: {each.message}" for each in found]


def definitions(folder: Path) -> dict[tuple[str, str], Schema]:
    """By apiVersion and kind, the schemas of the custom resource definitions in a folder, which is searched wholly."""
    found: dict[tuple[str, str], Schema] = {}
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        for document in yaml.load_all(file.read_bytes(), yaml.CSafeLoader):
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[name] = version["schema"]["openAPIV3Schema"]
    return found


def closed(theirs: Schema) -> Schema:
    """As the API server takes it with strict field validation: what a schema does not name is refused."""
    made = {**theirs, "properties": {name: closed(one) for name, one in theirs.get("properties", {}).items()}}
    for word in ("items", "additionalProperties"):
        if isinstance(theirs.get(word), dict):
            made[word] = closed(theirs[word])
    if made["properties"] and not theirs.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def differences(file: str, theirs: Schema) -> list[str]:
    """Where one of our schemas knows a field that theirs does not, or knows it otherwise."""
    return list(_differences(FILES[file], FILES[file], theirs, "$"))


def _differences(ours: Schema, whole: Schema, theirs: Schema, at: str) -> Iterator[str]:
    if at == "$.metadata" or theirs.get("x-kubernetes-preserve-unknown-fields"):
        return
    ours, whole = _resolved(ours, whole)
    if (own := ours.get("type")) != _type(theirs):
        yield f"{at} is {own} here and {_type(theirs)} there"
        return
    if more := _allowed(ours) - set(theirs.get("enum", _allowed(ours))):
        yield f"{at} may be {sorted(more)} here alone"
    if missing := set(theirs.get("required", ())) - set(ours.get("required", ())) - {"metadata"}:
        yield f"{at} must have {sorted(missing)} there alone"
    for name, field in ours.get("properties", {}).items():
        if name in theirs.get("properties", {}):
            yield from _differences(field, whole, theirs["properties"][name], f"{at}.{name}")
        else:
            yield f"{at}.{name} is here alone"
    for word, sign in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(ours.get(word), dict):
            yield from _differences(ours[word], whole, theirs.get(word, {}), at + sign)


def _resolved(ours: Schema, whole: Schema) -> tuple[Schema, Schema]:
    """A schema where it stands, and the file that it stands in."""
    while "$ref" in ours:
        file, _, place = ours["$ref"].partition("#/$defs/")
        whole = FILES[file] if file else whole
        ours = whole["$defs"][place] if place else whole
    return ours, whole


def _type(theirs: Schema) -> Any:
    return ["integer", "string"] if theirs.get("x-kubernetes-int-or-string") else theirs.get("type")


def _allowed(schema: Schema) -> set[str]:
    return set(schema.get("enum", ()))
