"""The compiled module `_cpu`, typed. Its source is in src/, its build in setup.py."""

import importlib
import platform
from typing import Protocol, cast


class Extension(Protocol):
    """The functions of src/module.c. All arguments are plain integers; addresses are not checked there."""

    def layout_bytes(self, kind: int, rows: int, columns: int, /) -> int: ...

    def pack(
        self, kind: int, values: int, positions: int, scales: int, scales_per_row: int,
        to: int, rows: int, columns: int, threads: int, /,
    ) -> None: ...  # fmt: skip

    def unpack(
        self, kind: int, weight: int, values: int, positions: int, scales: int, scales_per_row: int,
        rows: int, columns: int, threads: int, /,
    ) -> None: ...  # fmt: skip

    def expand(
        self, kind: int, weight: int, to: int, rows: int, columns: int,
        first_row: int, end_row: int, is_float32: int, threads: int, /,
    ) -> None: ...  # fmt: skip

    def multiply(
        self, kind: int, weight: int, x: int, bias: int, y: int,
        tokens: int, rows: int, columns: int, is_float32: int, threads: int, /,
    ) -> None: ...  # fmt: skip

    def draw(
        self, logits: int, vocabulary: int, is_float32: int, draws: int, count: int, ids: int, threads: int, /
    ) -> None: ...

    def score(
        self, logits: int, vocabulary: int, is_float32: int, tokens: int, count: int, top: int,
        logprobs: int, top_ids: int, top_logprobs: int, threads: int, /,
    ) -> None: ...  # fmt: skip

    def read_memory(self, address: int, nbytes: int, ahead: int, threads: int, /) -> int: ...

    def isa(self) -> str: ...

    def isas(self) -> list[str]: ...

    def force(self, isa: str, /) -> None: ...

    def workspace_bytes(self, model: int, threads: int, /) -> int: ...

    def step(
        self, model: int, token_count: int, chunk_count: int, wanted_count: int, tokens: int, chunks: int,
        wanted: int, logits: int, best: int, workspace: int, threads: int, /,
    ) -> int: ...  # fmt: skip

    def attend(self, layer_attention: int, /) -> int: ...

    def is_forked(self) -> bool: ...


def _import() -> tuple[Extension | None, str]:
    try:
        return cast(Extension, importlib.import_module("twofour.serve.kernels.cpu._cpu")), ""
    except ImportError as error:
        return (
            None,
            f"the C extension was not built or does not load ({error}); reinstall with a C++ compiler",
        )


_EXTENSION, _REASON = _import()


def loaded() -> Extension | None:
    """The module, or None where it was not built."""
    return _EXTENSION


def missing() -> str:
    """Why no kernel can run here; empty where one can."""
    if _EXTENSION is None or _EXTENSION.isa() != "none":
        return _REASON
    return f"no kernel for this processor ({platform.machine()}); x86-64 with AVX2 and FMA is needed"
