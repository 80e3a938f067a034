"""What a server says of itself that a profile keeps: how its engine batches, what it holds, what it is.

Ours says all at /metrics. vLLM says its cache, but neither the sequences nor the tokens of a step: flags do.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from twofour.bench.capacity.profile import EngineLimits, Hashes
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.server_side import samples
from twofour.bench.load.wire import shown
from twofour.prune.errors import InputError

_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}
_SETTINGS = {
    "max_num_seqs": ("twofour:max_num_seqs",),
    "max_num_batched_tokens": ("twofour:max_num_batched_tokens",),
    "kv_blocks": ("vllm:cache_config_info", "num_gpu_blocks"),
    "block_size": ("vllm:cache_config_info", "block_size"),
}


@dataclass(frozen=True)
class Server:
    """None: it does not say."""

    limits: EngineLimits
    sparse: bool | None
    weight_bytes: int | None
    weight_bits: int | None
    hashes: Hashes


def look(endpoint: Endpoint, given: Mapping[str, int | None], hardware: Any) -> Server:
    """given: limits that count instead of what the server says. Raises InputError where neither tells."""
    said, model = _metrics(endpoint), _model(endpoint)
    limits = _limits(endpoint, said, model, given)
    weights = _number(said, "twofour:weight_bytes", kind="total")
    sparse = _number(said, "twofour:sparse")
    bits = _BITS.get(_label(said, "twofour:weights_info", "dense_linears") or "")
    engine = [endpoint.version(), _label(said, "twofour:runner_info", "runner"), _kernels(said)]
    known = {name: value for name, value in model.items() if name not in ("created", "permission")}
    hashes = Hashes(_hash([known, weights, sparse]), _hash(engine), _hash(hardware), _hash(asdict(limits)))
    return Server(limits, None if sparse is None else bool(sparse), weights, None if sparse else bits, hashes)


Samples = list[tuple[str, Mapping[str, str], float]]


def _limits(
    endpoint: Endpoint, said: Samples, model: Mapping[str, Any], given: Mapping[str, int | None]
) -> EngineLimits:
    found = {name: _setting(said, *where) for name, where in _SETTINGS.items()} | {
        "context_length": _whole(model.get("max_model_len"))
    }
    limits = {name: given.get(name) or value for name, value in found.items()}
    for name, value in limits.items():
        if not value:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{shown(endpoint.url)} does not say its {name}; give {flag}, as it was started with")
    piece, cached = _number(said, "twofour:step_piece_tokens"), _label(said, *_PREFIXES)
    return EngineLimits(
        limits["max_num_seqs"] or 0,
        limits["max_num_batched_tokens"] or 0,
        limits["kv_blocks"] or 0,
        limits["block_size"] or 0,
        limits["context_length"] or 0,
        piece=piece or 0,
        prefix_cache=cached != "False",
        policy="vllm" if _cache_of_vllm(said) else "twofour",
    )


_PREFIXES = ("vllm:cache_config_info", "enable_prefix_caching")


def _cache_of_vllm(said: Samples) -> bool:
    """vLLM says much more of its cache than we do; where nothing tells, it is ours."""
    return any(name == "vllm:cache_config_info" for name, *_ in said) and not _number(
        said, "twofour:kv_capacity_tokens"
    )


def _metrics(endpoint: Endpoint) -> Samples:
    try:
        return list(samples(endpoint.metrics() or "", lambda name: not name.endswith("_bucket")))
    except ValueError:
        return []


def _model(endpoint: Endpoint) -> Mapping[str, Any]:
    return next((each for each in endpoint.models() if each.get("id") == endpoint.model), {})


def _setting(said: Samples, name: str, label: str | None = None) -> int | None:
    return _whole(_label(said, name, label)) if label else _number(said, name)


def _whole(value: object) -> int | None:
    return int(str(value)) if str(value).isdecimal() else None


def _number(said: Samples, name: str, **labels: str) -> int | None:
    """Of several engines behind one server, the first."""
    return next((int(v) for n, has, v in said if n == name and labels.items() <= has.items()), None)


def _label(said: Samples, name: str, label: str) -> str | None:
    return next((has[label] for n, has, _ in said if n == name and label in has), None)


def _kernels(said: Samples) -> list[tuple[str, float]]:
    return sorted((has.get("kernel", ""), value) for name, has, value in said if name == "twofour:kernel_linears")


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
