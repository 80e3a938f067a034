"""twofour.bench: what a server does under load, and what 2:4 bought against dense."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.bench.compare import compare as compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name == "compare":
        from twofour.bench.compare import compare

        # The import has just bound the name to the module of the same name; from now on it is the function.
        globals()[name] = compare
        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
