"""No JSON value at any place of a model folder ends in anything but an answer or a TwofourError.

Every file of JSON is changed at one node: another type, a list, a huge number, nested, or gone. `check` may find no
fault with a pruned folder only where the weights are what they were, and what `convert`, `load_model` and `prune` then
make has the weights that there are.
"""

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import TwofourError
from twofour.prune.format import checkpoint
from twofour.prune.format.checkpoint import Weights
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.serve.commands.serve import load_tokenizer
from twofour.serve.engine.assembly.assemble import _eos_token_ids
from twofour.serve.model.loading import load_model

GONE = object()
NESTED: Any = []
for _ in range(600):
    NESTED = [NESTED]
VALUES = (
    *(GONE, None, True, False, 0, 1, -1, 3, 10**6, 10**9, 10**18, 10**400, 0.5, -1e308, float("inf"), float("nan")),
    *("", "x", "bfloat16", "int8", "../x", "\0", "\ud800", [], ["x"], [[1]], {}, {"x": 1}, {"shape": [64, 64]}, NESTED),
)
LONGEST = 40
COMMON = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
PACKED = (*COMMON, "twofour.json", "model.safetensors.index.twofour.json", "model.twofour-00001-of-00002.safetensors")
DENSE = (*COMMON, "model.safetensors.index.json", "model-00001-of-00002.safetensors")
PRUNED = PruneConfig(method="wanda", samples=2, length=16)
Node = tuple[str | int, ...]

MANY = pytest.param(15, marks=pytest.mark.slow)


@dataclass(frozen=True)
class Folder:
    path: Path
    weights: dict[str, torch.Tensor]


def in_two_shards(source: Path, folder: Path, form: checkpoint.Format) -> Folder:
    """Copy a folder, its weights in two files."""
    shutil.copytree(source, folder)
    with Weights(source) as weights:
        tensors = dict(weights)
    (folder / f"{'model.twofour' if form == 'packed' else 'model'}.safetensors").unlink()
    half = sum(tensor.nbytes for tensor in tensors.values()) // 2 + 5000
    checkpoint.write_weights(folder, tensors.items(), form, shard_bytes=half)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": [2], "top_k": 3}))
    return Folder(folder, tensors)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Folder:
    made = in_two_shards(tiny_model_folder, tmp_path_factory.mktemp("json") / "dense", "dense")
    assert sorted(DENSE) == sorted(path.name for path in made.path.iterdir() if path.name in DENSE)
    return made


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Folder:
    root = tmp_path_factory.mktemp("json")
    prune(tiny_model_folder, root / "whole", PRUNED)
    made = in_two_shards(root / "whole", root / "shards", "packed")
    checkpoint.write_manifest(made.path, json.loads((made.path / "twofour.json").read_text()))
    assert check(made.path).ok
    return made


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


def copies(intact: Folder, root: Path, file: str, changes: int) -> Iterator[tuple[Path, str]]:
    """Copies of a folder, each with one change to a file, and what it is; gone again afterwards."""
    document, generator = read(intact.path, file), random.Random(file)
    places = list(nodes(document))
    for _ in range(changes):
        node, value = generator.choice(places), generator.choice(VALUES)
        folder = shutil.copytree(intact.path, root / "folder")
        write(folder, file, changed(document, node, value))
        said = "gone" if value is GONE else "nested" if value is NESTED else repr(value)[:40]
        yield folder, f"{'/'.join(map(str, node))} of {file}: {said}"
        for path in root.iterdir():
            shutil.rmtree(path)


def judged(judge: Callable[[], None], change: str) -> None:
    """Let a failure name the change."""
    try:
        judge()
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise AssertionError(f"{change}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("changes", [1, MANY])
@pytest.mark.parametrize(
    "relabelled", [pytest.param(False, marks=pytest.mark.slow), True], ids=["digests differ", "digests fit"]
)
@pytest.mark.parametrize("file", PACKED)
def test_a_pruned_folder(packed: Folder, tmp_path: Path, file: str, relabelled: bool, changes: int) -> None:
    """With digests that fit, only what the files say of each other can tell."""
    for folder, change in copies(packed, tmp_path, file, changes):
        if relabelled and isinstance(label := read(folder, "twofour.json"), dict):
            label["sha256"] = checkpoint.digests(folder)
            write(folder, "twofour.json", label)
        judged(lambda folder=folder: judge_pruned(folder, tmp_path / "out", packed.weights), change)  # type: ignore[misc]


def judge_pruned(folder: Path, out: Path, weights: dict[str, torch.Tensor]) -> None:
    report = check(folder)
    assert all(isinstance(fault, str) for fault in report.faults)
    attempt(lambda: convert(folder, out, "packed"))
    if report.ok:
        assert same(folder, weights)
    if out.exists():
        assert report.ok and check(out).ok and same(out, weights)
    judge_loading(folder, weights)


@pytest.mark.parametrize("changes", [1, MANY])
@pytest.mark.parametrize("file", DENSE)
def test_a_dense_folder(dense: Folder, tmp_path: Path, file: str, changes: int) -> None:
    for folder, change in copies(dense, tmp_path, file, changes):
        judged(lambda folder=folder: judge_dense(folder, tmp_path / "out", dense.weights), change)  # type: ignore[misc]


def judge_dense(folder: Path, out: Path, weights: dict[str, torch.Tensor]) -> None:
    assert not check(folder).ok
    if attempt(lambda: prune(folder, out, PRUNED)):
        assert check(out).ok
    judge_loading(folder, weights)


def judge_loading(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    attempt(lambda: load_tokenizer(str(folder), None))
    if model := attempt(lambda: load_model(str(folder), device="cpu", kernels="reference")):
        assert all(type(token) is int for token in _eos_token_ids(model))
        loaded = model.state_dict()
        assert all(torch.equal(loaded[name].to(tensor.dtype), tensor) for name, tensor in weights.items())


def same(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    with Weights(folder) as found:
        return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
