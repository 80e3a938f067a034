"""A mixed folder in the engine: every scheme has its own kernel in the fused step, and the generic runner agrees."""

from collections import Counter
from pathlib import Path
from typing import Any

import fused_models
import pytest
import torch
from fused_models import POSITIONS, VOCABULARY
from mixed_folders import mixed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from twofour.prune.format.folder import read_json
from twofour.prune.label.convert import convert
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.runners import Chunk, choice
from twofour.serve.engine.runners.fused import FusedRunner
from twofour.serve.engine.runners.generic import attention_layers
from twofour.serve.engine.types import EngineConfig
from twofour.serve.kernels.cpu import extension
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import weight_report

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
BLOCKS, SIZE = 12, 16
TOKENS = [(37 * i * i + 11 * i + 5) % VOCABULARY for i in range(100)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixed folder, and its weights expanded."""
    folder = tmp_path_factory.mktemp("mixed")
    fused_models.models("llama", "dense")[0].save_pretrained(folder / "source")
    mixed(folder / "source", folder / "mixed")
    convert(folder / "mixed", folder / "zeros", "dense")
    return folder / "mixed", folder / "zeros"


def config(folder: Path) -> EngineConfig:
    return EngineConfig(str(folder), device="cpu", threads=torch.get_num_threads(), block_size=SIZE)


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(choice, "has_tiles", lambda: False)
    return assemble.load(config(folder))


def kernel_of(linear: nn.Module) -> str:
    if isinstance(linear, SparseLinear):
        assert linear.choice is not None
        values = linear.packed().values.dtype
        return f"{linear.choice.kernel.name} {str(values).removeprefix('torch.')}"
    return linear.kernel.name if isinstance(linear, Int8Linear) and linear.kernel else type(linear).__name__


def test_every_scheme_has_its_kernel(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folders[0], monkeypatch)
    schemes = Counter(read_json(folders[0] / "twofour.json")["schemes"].values())
    found = Counter(kernel_of(model.get_submodule(name)) for name in read_json(folders[0] / "twofour.json")["schemes"])
    assert found == {
        "cpu bfloat16": schemes["2:4"],
        "cpu int8": schemes["2:4-int8"],
        "dense int8": schemes["dense-int8"],
        "DenseLinear": schemes["dense"],
    }
    assert all(schemes.values()) and len(schemes) == 4
    report = weight_report(model)
    sparse = schemes["2:4"] + schemes["2:4-int8"]
    assert report.kernels == {"cpu": sparse, "dense int8": schemes["dense-int8"], "dense": schemes["dense"]}
    assert report.dense_values == "bfloat16, int8"


def logits(runner: Any, step: int) -> Tensor:
    chunks = [
        Chunk(part, start, range(8), range(len(part)), start + len(part))
        for start in range(0, len(TOKENS), step)
        if (part := TOKENS[start : start + step])
    ]
    return torch.cat([runner.forward([chunk]) for chunk in chunks]).float()


def test_the_fused_runner_and_the_generic_one_agree(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders[0], monkeypatch)
    fused, _ = choice.choose(model, "auto", SIZE).build(BLOCKS, SIZE, POSITIONS)
    assert isinstance(fused, FusedRunner)
    generic = choice.generic(model, attention_layers(model), BLOCKS, SIZE)
    plain = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32)
    with torch.inference_mode():
        exact: Tensor = plain(torch.tensor([TOKENS])).logits[0]
    ours, theirs = (logits(runner, 32) for runner in (fused, generic))
    assert float((ours - exact).norm() / exact.norm()) < 1.1 * float((theirs - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(logits(fused, 1), ours)


def test_it_is_said_at_the_start_what_is_stored_how(folders: tuple[Path, Path]) -> None:
    _, info = assemble.start(config(folders[0]))
    count = Counter(read_json(folders[0] / "twofour.json")["schemes"].values())["dense-int8"]
    assert f"{count} dense linears are int8 in the checkpoint" in info.notes
    assert info.sparse and info.dense_values == "bfloat16, int8"
