"""`quantization_config` in config.json: what a loader must know of a packed folder before it reads a weight.

Version 1 has 2:4 linears with values of one dtype; other linears are dense and in `ignore`. Version 2 is the same with
lm_head in int8. Version 3 names in `schemes` the linears that are stored otherwise: dense in int8, or 2:4 with int8
values where those of the others are floats. Readers of an older version refuse a newer one.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

import torch

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format.dense_int8 import SCALES, VALUES
from twofour.prune.format.packed import FLOAT_DTYPES, Packed
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, StoredWeight, scheme_of
from twofour.prune.format.weights import VARIANT, Weights

PLAIN_VERSION, HEAD_VERSION, MIXED_VERSION = 1, 2, 3
VALUE_DTYPES = ("bfloat16", "float16", "float32", "int8")
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by the names of safetensors
SCALE_COLUMNS = (0, 64)  # columns that share a scale of int8 values; 0: all of a row


class Kind(NamedTuple):
    """What a linear is stored as. dtype: of its values. scale_columns: of 2:4 in int8."""

    scheme: Scheme
    dtype: str
    scale_columns: int = 0


def kind_of(weight: StoredWeight) -> Kind:
    """What a weight is stored as."""
    scheme = scheme_of(weight)
    if isinstance(weight, Packed):
        return Kind(scheme, dtype_name(weight.values.dtype), weight.scale_columns)
    return Kind(scheme, "int8" if scheme == "dense-int8" else dtype_name(weight.dtype))  # type: ignore[union-attr]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype as config.json has it."""
    return str(dtype).removeprefix("torch.")


def value_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name of `VALUE_DTYPES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def named_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the model by config.json, if it names one that a model can have."""
    known = {dtype_name(dtype): dtype for dtype in FLOAT_DTYPES}
    return known.get(str(config.get("dtype") or config.get("torch_dtype")))


def quantization_config(kinds: Mapping[str, Kind], ignore: list[str], int8_head: bool = False) -> dict[str, Any]:
    """What a loader needs to know, for config.json. kinds: of the linears. ignore: modules as in the dense model."""
    rest, has_int8 = _default(kinds.values())
    apart = {scheme: [name for name in kinds if kinds[name].scheme == scheme] for scheme in get_args(Scheme)}
    apart = {scheme: sorted(names) for scheme, names in apart.items() if names and scheme not in ("dense", rest.scheme)}
    version = MIXED_VERSION if apart else HEAD_VERSION if int8_head else PLAIN_VERSION
    return {
        "quant_method": VARIANT,
        "format_version": version,
        "pattern": "2:4",
        "values_dtype": rest.dtype,
        **({} if has_int8 is None else {"scale_columns": has_int8.scale_columns}),
        **({"lm_head": "int8"} if int8_head else {}),
        **({"schemes": apart} if apart else {}),
        "ignore": ignore,
    }


def _default(kinds: Collection[Kind]) -> tuple[Kind, Kind | None]:
    """The kind of the 2:4 linears that are not named one by one, and that of those in int8."""
    packed = {kind for kind in kinds if kind.scheme in TWO_OF_FOUR}
    if not packed:
        raise ModelError("no linear of the decoder blocks is 2:4; leave fewer of them dense")
    by_scheme = [[kind for kind in packed if kind.scheme == scheme] for scheme in TWO_OF_FOUR]
    if any(len(found) > 1 for found in by_scheme):
        names = ", ".join(sorted(f"{kind.dtype} (scale_columns {kind.scale_columns})" for kind in packed))
        raise ModelError(f"the linears have values of several kinds, {names}; give a model with one dtype")
    for kind in packed:
        if kind.dtype not in VALUE_DTYPES or kind.scale_columns not in SCALE_COLUMNS:
            raise ModelError(
                f"values of {kind.dtype} (scale_columns {kind.scale_columns}) cannot be stored; choose one of "
                f"{', '.join(VALUE_DTYPES)}, scale_columns {' or '.join(str(known) for known in SCALE_COLUMNS)}"
            )
    floats, int8 = (found[0] if found else None for found in by_scheme)
    return floats or next(iter(packed)), int8


def has_int8_head(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that lm_head is stored in int8."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("lm_head") == "int8"


def stated(quantization: Mapping[str, Any], names: Iterable[str]) -> dict[str, Kind]:
    """What linears of the decoder blocks are stored as, by the names they are stored under."""
    known, rest = named(quantization), default(quantization)
    return {name: known.get(name, rest) for name in names}


def default(quantization: Mapping[str, Any]) -> Kind:
    """What the linears are stored as that are not named one by one."""
    dtype = quantization["values_dtype"]
    return _int8(quantization) if dtype == "int8" else Kind("2:4", dtype)


def named(quantization: Mapping[str, Any]) -> dict[str, Kind]:
    """What the modules are stored as that are named one by one; a dense one in whatever dtype the model has ("")."""
    schemes = quantization.get("schemes") or {}
    return {
        **dict.fromkeys(quantization.get("ignore", ()), Kind("dense", "")),
        **dict.fromkeys(schemes.get("2:4-int8", ()), _int8(quantization)),
        **dict.fromkeys(schemes.get("dense-int8", ()), Kind("dense-int8", "int8")),
    }


def _int8(quantization: Mapping[str, Any]) -> Kind:
    return Kind("2:4-int8", "int8", int(quantization.get("scale_columns", 0)))


def require_known(quantization: Any) -> None:
    """Raise CheckpointError unless this quantization_config is that of a packed checkpoint that we can read."""
    if not isinstance(quantization, Mapping):
        raise CheckpointError(f"config.json has the quantization_config {quantization!r}; take an intact copy")
    version, schemes = quantization.get("format_version"), quantization.get("schemes")
    is_float = quantization.get("values_dtype") != "int8"
    has_int8 = not is_float or (isinstance(schemes, Mapping) and "2:4-int8" in schemes)
    found = quantization if has_int8 else {"scale_columns": 0, **quantization}
    heads = {PLAIN_VERSION: (None,), HEAD_VERSION: ("int8",)}
    known: dict[str, tuple[Any, ...]] = {
        "quant_method": (VARIANT,),
        "format_version": (PLAIN_VERSION, HEAD_VERSION, MIXED_VERSION),
        "pattern": ("2:4",),
        "values_dtype": VALUE_DTYPES,
        "scale_columns": SCALE_COLUMNS if has_int8 else (0,),
        "lm_head": heads.get(version, (None, "int8")) if type(version) is int else (None,),
    }
    for key, values in known.items():
        said = found.get(key)
        if not any(said == value and type(said) is type(value) for value in values):  # 64.0 is not 64
            raise CheckpointError(f"config.json says {key} {said!r}, known: {values}; upgrade twofour")
    ignore = quantization.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise CheckpointError("config.json does not list the modules to ignore; take an intact copy")
    if fault := _schemes_fault(quantization, is_float):
        raise CheckpointError(f"config.json {fault}; take an intact copy, or upgrade twofour")


def _schemes_fault(quantization: Mapping[str, Any], is_float: bool) -> str | None:
    """What is wrong with `schemes`, which is there with version 3 alone and names no linear twice."""
    schemes, version = quantization.get("schemes"), quantization["format_version"]
    if version != MIXED_VERSION:
        return None if schemes is None else f"has schemes, but format_version {version}"
    if not isinstance(schemes, Mapping) or not schemes:
        return f"says schemes {schemes!r}, not which linears are stored how"
    known = ("2:4-int8", "dense-int8") if is_float else ("dense-int8",)
    for scheme, names in schemes.items():
        if scheme not in known:
            return f"names the scheme {scheme!r}, known: {known}"
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            return f"does not list the linears of the scheme {scheme}, but {names!r}"
    counts = Counter([*quantization.get("ignore", ()), *(name for names in schemes.values() for name in names)])
    twice = next((name for name, count in counts.items() if count > 1), None)
    return None if twice is None else f"names {twice!r} twice in schemes and ignore"


def require_kinds(tensors: Weights, quantization: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless what is packed has the dtypes that this quantization_config promises.

    transformers before 5.20 casts what it reads to the dtype of what it has a place for, floats to int8 among it.
    """
    for name, expected in _promised(tensors, quantization):
        if (found := tensors.dtype(name)) != expected:
            raise CheckpointError(
                f"{name} is {found}, by config.json it is {expected}; take an intact copy of the model"
            )


def _promised(tensors: Weights, quantization: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The stored tensors of weights that are not as in the dense model, with the dtype that each must have."""
    stored = {dtype_name(dtype): name for name, dtype in FLOATS.items()} | {"int8": "I8"}
    fixed = {"positions": "U8", "scales": "F32", VALUES: "I8", SCALES: "F32"}
    int8 = set((quantization.get("schemes") or {}).get("2:4-int8", ()))
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part == "values":
            yield name, "I8" if module in int8 else stored[quantization["values_dtype"]]
        elif part in fixed:
            yield name, fixed[part]
