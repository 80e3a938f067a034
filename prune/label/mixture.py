"""What a label says of a mixed folder, in words and tables: which share is stored how, and what is dense and why."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("scheme", "linears", "share of the weights", "share of the bytes")
NOTE = (
    "2:4 keeps two of four weights, dense keeps all; int8 is rounded, with a scale for each row (2:4) or for each 64 "
    "columns (dense), all else is in the dtype of the model."
)


def is_mixed(manifest: Mapping[str, Any]) -> bool:
    """Whether linears of the decoder blocks are stored in several ways."""
    return len(manifest.get("shares", {})) > 1


def dense_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Name what is dense and why; linears of the decoder blocks that are for one reason stand in one line."""
    schemes: Mapping[str, str] = manifest.get("schemes", {})
    together: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, why in manifest["dense"].items():
        if name in schemes:
            together[why, schemes[name]].append(name)
    outside = [f"`{name}`: {why}" for name, why in manifest["dense"].items() if name not in schemes]
    return outside + [f"{_named(names)} ({scheme}): {why}" for (why, scheme), names in together.items()]


def _named(names: Sequence[str]) -> str:
    return f"`{names[0]}`" if len(names) == 1 else f"{len(names)} linears, `{names[0]}` to `{names[-1]}`"


def left_dense(manifest: Mapping[str, Any]) -> str:
    """Name what is dense outside the decoder blocks, and count the linears inside that are."""
    inside = manifest.get("schemes", {})
    names = [name for name in manifest["dense"] if name not in inside]
    count = len(manifest["dense"]) - len(names)
    return ", ".join(names + ([f"{count} linears of the decoder blocks"] if count else []))


def share_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each scheme in the decoder blocks the linears, and its shares of their weights and bytes."""
    found: Mapping[str, Mapping[str, int]] = manifest.get("shares", {})
    sums = {key: sum(share[key] for share in found.values()) for key in ("weights", "bytes")}
    return [
        (scheme, str(share["linears"]), *(f"{share[key] / total:.1%}" for key, total in sums.items()))  # type: ignore[misc]
        for scheme, share in found.items()
    ]


def mixed_shares(manifest: Mapping[str, Any]) -> str:
    """Say which share of the decoder blocks is stored how."""
    rows = share_rows(manifest)
    return "; ".join(f"{scheme} {weights} of the weights, {size} of the bytes" for scheme, _, weights, size in rows)


def counts(schemes: Mapping[str, str]) -> str:
    """Say how many linears have each scheme."""
    return ", ".join(f"{count} linears ({scheme})" for scheme, count in Counter(schemes.values()).items())


def met(policy: Mapping[str, Any]) -> str:
    """Say what was asked of the mixture, what it costs, and how far it is from the dense model."""
    asked = " and ".join(f"{name} {value:g}" for name, value in policy["asked"].items())
    what = {"bytes": "bytes", "decode": "seconds of a token", "prefill": "seconds of a prompt"}[policy["budget_for"]]
    return (
        f"{asked}: met with {policy['share']:.4f} of the {what} of the dense linears ({policy['cost']}); KL to dense "
        f"{policy['kl']:.4f} nats on {policy['samples']} held-out samples, {policy['predicted_kl']:.4f} predicted "
        "before any training"
    )
