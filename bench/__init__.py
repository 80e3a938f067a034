"""twofour.bench: what a server does under load, and what 2:4 bought against dense."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.bench.comparison import compare as compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from twofour.bench.comparison import compare

    return compare
