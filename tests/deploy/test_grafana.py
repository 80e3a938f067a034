"""The dashboards as Grafana's own models of them read them: each name a field of theirs, each value of its type."""

import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from deployed import DEPLOY
from expressions import dashboards

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def sdk() -> Any:
    """Grafana's models, with the kinds of panels and queries that it comes with."""
    try:
        from grafana_foundation_sdk.cog import encoder, plugins
        from grafana_foundation_sdk.models import dashboard, units
    except ImportError:
        pytest.fail('grafana-foundation-sdk is not installed here; run "make deploy-judges"')
    plugins.register_default_plugins()
    return types.SimpleNamespace(Dashboard=dashboard.Dashboard, encode=encoder.JSONEncoder().encode, units=units)


def lost(given: Any, written: Any, where: str = "dashboard") -> Iterator[str]:
    """What did not come back: fields of no model."""
    if isinstance(given, dict) and isinstance(written, dict):
        for name, value in given.items():
            yield from lost(value, written[name], f"{where}.{name}") if name in written else [f"{where}.{name}"]
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, (one, other) in enumerate(zip(given, written, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif given != written:
        yield where


def wrong(value: Any, kind: Any, where: str = "dashboard") -> Iterator[str]:
    """What of a model is not of the type that the model says."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(value, "to_json"):
        for name, hint in typing.get_type_hints(type(value)).items():
            yield from wrong(getattr(value, name), hint, f"{where}.{name}")
    elif origin in (typing.Union, types.UnionType):
        each = [list(wrong(value, part, where)) for part in parts]
        yield from min(each, key=len)
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from wrong(item, parts[0], f"{where}[{number}]")
    elif isinstance(value, dict) and hasattr(kind, "from_json"):  # they read no list of models
        yield from wrong(kind.from_json(value), kind, where)
    elif not fits(value, kind):
        yield f"{where} is {value!r}, no {kind}"


def fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return value in [member.value for member in kind]
    if kind in (Any, object):
        return True
    plain = typing.get_origin(kind) or ((int, float) if kind is float else kind)
    return isinstance(value, plain) and (kind is bool or not isinstance(value, bool))


@pytest.mark.parametrize("file", dashboards(), ids=lambda file: file.stem)
def test_grafanas_models_read_it(sdk: Any, file: Path) -> None:
    given = json.loads(file.read_text())
    read = sdk.Dashboard.from_json(given)
    assert list(lost(given, json.loads(sdk.encode(read)))) == []
    assert list(wrong(read, sdk.Dashboard)) == []
    assert {type(query).__module__.rpartition(".")[2] for panel in read.panels for query in panel.targets} == {
        "prometheus"
    }
    known = {unit for unit in vars(sdk.units).values() if isinstance(unit, str)}
    assert {panel.field_config.defaults.unit for panel in read.panels} <= known


def test_the_models_are_those_of_the_grafana_that_is_shipped(sdk: Any) -> None:
    shipped = re.search(r"grafana/grafana:([\d.]+)", (DEPLOY / "compose" / "compose.replicas.yaml").read_text())
    assert shipped and metadata.version("grafana-foundation-sdk").partition("!")[2] == shipped[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda panel: panel["options"]["legend"].update(displayMode="lists"), "display_mode is 'lists'"),
        (lambda panel: panel["gridPos"].update(w="8"), "grid_pos.w is '8'"),
        (lambda panel: panel["targets"][0].update(legend="{{instance}}"), "targets[0].legend"),
        (lambda panel: panel.update(heading="Ready"), "panels[0].heading"),
    ],
    ids=["a value", "a type", "a field of a query", "a field of a panel"],
)
def test_the_models_see_what_is_wrong(sdk: Any, change: Any, said: str) -> None:
    given = json.loads(dashboards()[0].read_text())
    change(given["panels"][0])
    read = sdk.Dashboard.from_json(given)
    found = [*lost(given, json.loads(sdk.encode(read))), *wrong(read, sdk.Dashboard)]
    assert any(said in fault for fault in found), found
