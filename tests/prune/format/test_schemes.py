"""What each scheme takes, and that a weight is what its scheme says, against the bytes of its tensors."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from twofour.prune.errors import CheckpointError, PatternError
from twofour.prune.format import checkpoint
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.folder import read_config
from twofour.prune.format.packed import pack
from twofour.prune.format.quantization import Kind, kind_of, quantization_config, require_kinds, require_known, stated
from twofour.prune.format.rounding import to_int8
from twofour.prune.format.schemes import Scheme, expanded, parts, scheme_bytes, scheme_of, stored
from twofour.prune.format.weights import Weights
from twofour.prune.solving.magnitude import magnitude

BLOCK = "model.layers.0"


@pytest.mark.parametrize("columns", [4, 12, 64, 96, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_the_bytes_are_those_of_the_tensors(scheme: Scheme, dtype: torch.dtype, columns: int) -> None:
    weight = magnitude(torch.randn(6, columns))
    made = stored(weight, scheme, dtype)
    assert scheme_of(made) == scheme and expanded(made).shape == weight.shape
    assert sum(part.nbytes for part in parts(made).values()) == scheme_bytes(scheme, 6, columns, dtype)


def test_the_bytes_of_scales_for_each_64_columns() -> None:
    packed = to_int8(pack(magnitude(torch.randn(6, 200))), 64)
    assert packed.nbytes == scheme_bytes("2:4-int8", 6, 200, torch.bfloat16, 64)


def test_the_bytes_of_a_weight_of_16_bits() -> None:
    per_weight = {scheme: scheme_bytes(scheme, 1, 6400, torch.bfloat16) / 6400 for scheme in get_args(Scheme)}
    assert per_weight == {"2:4": 1.125, "2:4-int8": 0.625 + 4 / 6400, "dense": 2.0, "dense-int8": 1 + 4 / 64}


def test_a_weight_that_is_not_2_of_4_is_not_stored_so() -> None:
    with pytest.raises(PatternError, match="q_proj is not 2:4"):
        stored(torch.ones(2, 4), "2:4", torch.bfloat16, "q_proj")


def mixed(source: Path, out: Path) -> Path:
    """A folder of every scheme: in block 0 q, k, v dense, o dense in int8, gate, up 2:4 in int8; all else 2:4."""
    with Weights(source) as dense:
        originals = {name.removesuffix(".weight"): dense[name] for name in dense if name.endswith("proj.weight")}
    schemes: dict[str, Scheme] = dict.fromkeys(originals, "2:4")
    schemes |= {f"{BLOCK}.self_attn.{one}_proj": "dense" for one in "qkv"}
    schemes |= {f"{BLOCK}.self_attn.o_proj": "dense-int8"}
    schemes |= {f"{BLOCK}.mlp.{one}_proj": "2:4-int8" for one in ("gate", "up")}
    weights = {
        name: stored(weight if schemes[name].startswith("dense") else magnitude(weight), schemes[name], weight.dtype)
        for name, weight in originals.items()
    }
    out.mkdir()
    checkpoint.write_model(out, source, weights, "packed")
    return out


def test_a_folder_of_every_scheme_is_written_and_read_back(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = mixed(tiny_model_folder, tmp_path / "mixed")
    quantization = read_config(folder)["quantization_config"]
    require_known(quantization)
    assert quantization["format_version"] == 3 and quantization["values_dtype"] == "bfloat16"
    assert quantization["schemes"] == {
        "2:4-int8": [f"{BLOCK}.mlp.gate_proj", f"{BLOCK}.mlp.up_proj"],
        "dense-int8": [f"{BLOCK}.self_attn.o_proj"],
    }
    dense = [f"{BLOCK}.self_attn.{one}_proj" for one in "kqv"]
    assert quantization["ignore"] == ["lm_head", "model.embed_tokens", *dense]
    with Weights(tiny_model_folder) as before, Weights(folder) as after:
        require_kinds(after, quantization)
        names = [name.removesuffix(".weight") for name in before if name.endswith("proj.weight")]
        kinds = stated(quantization, names)
        assert {kind.scheme for kind in kinds.values()} == set(get_args(Scheme))
        for name in names:
            weight = before[f"{name}.weight"]
            dense_or_not = weight if kinds[name].scheme.startswith("dense") else magnitude(weight)
            expected = parts(stored(dense_or_not, kinds[name].scheme, torch.bfloat16))
            found = {key.removeprefix(f"{name}."): after[key] for key in after if key.startswith(f"{name}.")}
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[part], expected[part]) for part in expected)


def test_one_kind_of_2_of_4_beside_dense_is_version_1_and_with_a_head_2() -> None:
    packed, dense = kind_of(pack(torch.zeros(2, 4))), kind_of(torch.zeros(2, 4))
    int8 = kind_of(to_int8(pack(torch.zeros(2, 4))))
    rounded = kind_of(to_dense_int8(torch.zeros(2, 4)))

    def version(head: bool, *kinds: Kind) -> int:
        config = quantization_config({str(n): kind for n, kind in enumerate(kinds)}, [], head)
        require_known(config)
        found: int = config["format_version"]
        return found

    assert [version(head, packed, dense) for head in (False, True)] == [1, 2]
    assert [version(head, int8, dense) for head in (False, True)] == [1, 2]
    assert [version(head, packed, rounded) for head in (False, True)] == [3, 3]
    assert version(False, packed, int8) == version(False, int8, rounded) == 3


OLD_RULE = {"quant_method": ("twofour",), "format_version": (1, 2), "pattern": ("2:4",)}  # of readers of version 2


def test_older_readers_refuse_a_mixed_folder_by_its_version(tiny_model_folder: Path, tmp_path: Path) -> None:
    quantization = read_config(mixed(tiny_model_folder, tmp_path / "mixed"))["quantization_config"]
    refused = [key for key, known in OLD_RULE.items() if quantization.get(key) not in known]
    assert refused == ["format_version"]


def known(**changes: object) -> dict[str, object]:
    base = {"quant_method": "twofour", "format_version": 3, "pattern": "2:4", "values_dtype": "bfloat16"}
    return base | {"schemes": {"dense-int8": ["a", "b"]}, "ignore": ["c"]} | changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"schemes": None}, "says schemes None"),
        ({"schemes": {}}, "says schemes {}"),
        ({"schemes": ["a"]}, r"says schemes \['a'\]"),
        ({"schemes": {"dense-int8": []}}, "does not list the linears of the scheme dense-int8"),
        ({"schemes": {"dense-int8": "a"}}, "does not list the linears of the scheme dense-int8"),
        ({"schemes": {"dense-int8": [1]}}, "does not list the linears of the scheme dense-int8"),
        ({"schemes": {"dense-int4": ["a"]}}, "names the scheme 'dense-int4'"),
        ({"schemes": {"dense": ["a"]}}, "names the scheme 'dense'"),
        ({"schemes": {"dense-int8": ["a", "a"]}}, "names 'a' twice"),
        ({"schemes": {"dense-int8": ["a"], "2:4-int8": ["a"]}, "scale_columns": 0}, "names 'a' twice"),
        ({"schemes": {"dense-int8": ["c"]}}, "names 'c' twice in schemes and ignore"),
        ({"schemes": {"2:4-int8": ["a"]}}, "says scale_columns None"),
        ({"scale_columns": 64}, "says scale_columns 64"),
        ({"schemes": {"2:4-int8": ["a"]}, "values_dtype": "int8", "scale_columns": 0}, "names the scheme '2:4-int8'"),
        ({"format_version": 1}, "has schemes, but format_version 1"),
        ({"lm_head": "int4"}, "says lm_head 'int4'"),
        ({"ignore": [{}]}, "does not list the modules to ignore"),
        ({"ignore": 5}, "does not list the modules to ignore"),
    ],
)
def test_what_a_mixed_folder_cannot_say_is_refused(changes: dict[str, object], fault: str) -> None:
    require_known(known())
    require_known(known(lm_head="int8"))
    require_known(known(schemes={"2:4-int8": ["a"]}, scale_columns=64))
    with pytest.raises(CheckpointError, match=f"config.json {fault}"):
        require_known(known(**changes))
