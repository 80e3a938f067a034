"""No JSON value at any place of a model folder ends in anything but an answer or a TwofourError.

Every file of JSON of a small packed folder is changed at one node: another type, a list, a huge number, nested, or
gone. `check` may find no fault with it only where the weights are what they were, and what `convert` and `load_model`
then make has the same weights.
"""

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofour.prune import checkpoint
from twofour.prune.audit import check
from twofour.prune.checkpoint import Weights
from twofour.prune.convert import convert
from twofour.prune.errors import TwofourError
from twofour.serve.loading import load_model

GONE = object()
NESTED: Any = []
for _ in range(600):
    NESTED = [NESTED]
VALUES = (
    *(GONE, None, True, False, 0, 1, -1, 3, 10**6, 10**9, 10**18, 10**400, 0.5, -1e308, float("inf"), float("nan")),
    *("", "x", "bfloat16", "int8", "../x", "\0", "\ud800", [], ["x"], [[1]], {}, {"x": 1}, {"shape": [64, 64]}, NESTED),
)
FILES = ("config.json", "twofour.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
LONGEST = 40
INDEX = "model.safetensors.index.twofour.json"
SHARD = "model.twofour-00001-of-00002.safetensors"
Node = tuple[str | int, ...]


class Folder(NamedTuple):
    path: Path
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Folder:
    """A packed folder in two shards, as `prune` labels it."""
    from twofour.prune import PruneConfig, prune

    root = tmp_path_factory.mktemp("json")
    prune(tiny_model_folder, root / "whole", PruneConfig(method="wanda", samples=2, length=16))
    with Weights(root / "whole") as weights:
        tensors = dict(weights)
    folder = shutil.copytree(root / "whole", root / "shards")
    (folder / "model.twofour.safetensors").unlink()
    half = sum(tensor.nbytes for tensor in tensors.values()) // 2 + 5000
    checkpoint.write_weights(folder, tensors.items(), "packed", shard_bytes=half)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": [2], "top_k": 3}))
    checkpoint.write_manifest(folder, json.loads((folder / "twofour.json").read_text()))
    assert check(folder).ok and (folder / INDEX).exists()
    return Folder(folder, tensors)


def nodes(document: Any, here: Node = ()) -> Iterator[Node]:
    """Every place of a document; of long lists, such as a vocabulary, the first ones."""
    yield here
    inside: Iterable[tuple[str | int, Any]] = ()
    if isinstance(document, dict):
        inside = document.items()
    elif isinstance(document, list):
        inside = enumerate(document)
    for key, value in islice(inside, LONGEST):
        yield from nodes(value, (*here, key))


def changed(document: Any, node: Node, value: Any) -> Any:
    if not node:
        return {} if value is GONE else value
    result = copy.deepcopy(document)
    parent = result
    for key in node[:-1]:
        parent = parent[key]
    if value is GONE:
        del parent[node[-1]]
    else:
        parent[node[-1]] = value
    return result


def write(folder: Path, file: str, document: Any) -> None:
    text = json.dumps(document)
    if not file.endswith(".safetensors"):
        (folder / file).write_text(text)
        return
    data = (folder / file).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[8 + length :])


def read(folder: Path, file: str) -> Any:
    data = (folder / file).read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]] if file.endswith(".safetensors") else data)


def attempt(work: Callable[[], Any]) -> Any:
    """What it gives, None where it refuses; whatever else it raises ends the test."""
    try:
        return work()
    except TwofourError as error:
        assert str(error)
        return None


@pytest.mark.slow
@pytest.mark.parametrize("file", [*FILES, INDEX, SHARD])
@pytest.mark.parametrize("relabelled", [False, True], ids=["digests differ", "digests fit"])
@settings(max_examples=int(os.environ.get('EX','60')), deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_no_json_value_ends_in_a_traceback(
    intact: Folder, tmp_path_factory: pytest.TempPathFactory, file: str, relabelled: bool, data: st.DataObject
) -> None:
    """With digests that fit, only what the files say of each other can tell."""
    document = read(intact.path, file)
    places = list(nodes(document))
    node = places[data.draw(st.integers(0, len(places) - 1), "node")]
    value = VALUES[data.draw(st.integers(0, len(VALUES) - 1), "value")]
    root = tmp_path_factory.mktemp("changed")
    folder = shutil.copytree(intact.path, root / "folder")
    write(folder, file, changed(document, node, value))
    if relabelled and isinstance(label := read(folder, "twofour.json"), dict):
        label["sha256"] = checkpoint.digests(folder)
        write(folder, "twofour.json", label)
    try:
        judge(folder, root, intact.weights)
    finally:
        shutil.rmtree(root)


def judge(folder: Path, root: Path, weights: dict[str, torch.Tensor]) -> None:
    report = check(folder)
    assert all(isinstance(fault, str) for fault in report.faults)
    attempt(lambda: convert(folder, root / "out", "packed"))
    if report.ok:
        assert same(folder, weights)
    if (root / "out").exists():
        assert report.ok and check(root / "out").ok and same(root / "out", weights)
    if model := attempt(lambda: load_model(str(folder), device="cpu", kernels="reference")):
        loaded = model.state_dict()
        assert all(torch.equal(loaded[name].to(tensor.dtype), tensor) for name, tensor in weights.items())


def same(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    with Weights(folder) as found:
        return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
