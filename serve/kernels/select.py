"""Which kernel multiplies by a weight: the one that was asked for by name, or the one that won a race.

Each shape is raced once on a machine, all forms that can take the weight against dense; see race.py for how, and
verdicts.py for where the outcome is kept. A 2:4 weight that would be slower than dense becomes dense.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.packed import Packed
from twofour.serve.kernels import cusparselt, dense, race, sparse_cpu, triton_linear, verdicts
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.kernels.race import ALWAYS, DECODE_TOKENS, HYSTERESIS, Result
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.kernels.verdicts import Verdict

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """A 2:4 weight in the layout of one kernel."""

    name: ClassVar[str]

    @property
    def nbytes(self) -> int:
        """Resident bytes of the layout."""

    @property
    def crossover_tokens(self) -> int:
        """Up to so many tokens take the path for few."""

    def packed(self) -> Packed:
        """Return the weight as it is stored."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias, [..., in] -> [..., out]."""


@dataclass(frozen=True)
class Candidate:
    """A kernel, the device it runs on, and why it may refuse a weight."""

    device: str
    build: Callable[[Packed, int], Kernel]  # with its crossover, in tokens
    refusal: Callable[[Packed], str | None]


CANDIDATES = {
    "cpu": Candidate("cpu", sparse_cpu.CpuKernel.from_packed, sparse_cpu.refusal),
    "triton": Candidate("cuda", triton_linear.TritonKernel.from_packed, triton_linear.refusal),
    "cusparselt": Candidate("cuda", cusparselt.searched, cusparselt.refusal),
}
NAMES = ("auto", "reference", *CANDIDATES)
SLOWER = "dense is faster on this machine"

# Where nothing can be raced, or one kernel is asked for: in tokens, by device and values. On a CPU one path, and so one
# order of additions, for all: a text must not depend on how many tokens were computed at a time. On a GPU from a guess.
CROSSOVERS = {
    "cpu": {"bfloat16": ALWAYS, "int8": ALWAYS, "dense": ALWAYS},
    "cuda": {"bfloat16": 64, "float16": 64},
}


@dataclass(frozen=True)
class Choice:
    """The kernel of one linear. `note`: why it multiplies by a dense weight where a 2:4 one was looked for."""

    kernel: Kernel
    note: str | None = None


def choose(packed: Packed, kernels: str = "auto") -> Choice:
    """Build the kernel for a weight on its device. Raises InputError for a name that is unknown or refuses."""
    require_name(kernels)
    if kernels == "reference":
        return Choice(ReferenceKernel.from_packed(packed))
    refusals = {name: _refusal(candidate, packed) for name, candidate in CANDIDATES.items()}
    if kernels != "auto":
        if refusals[kernels]:
            raise InputError(f"the kernel {kernels} was asked for, but {refusals[kernels]}; choose auto")
        return Choice(CANDIDATES[kernels].build(packed, _crossover(packed)))
    able = {name: CANDIDATES[name].build for name, refusal in refusals.items() if refusal is None}
    return _fastest(packed, able) if able else Choice(ReferenceKernel.from_packed(packed), _why(packed, refusals))


def require_name(kernels: str) -> None:
    """Raise InputError unless there is a kernel of that name."""
    if kernels not in NAMES:
        raise InputError(f"no kernel is named {kernels!r}; choose one of {', '.join(NAMES)}")


def dense_crossover(weight: Tensor, kernels: str, is_head: bool) -> int:
    """Up to how many tokens our dense kernel is faster than torch's for this weight [out, in]; 0: never.

    A head sees few tokens at a time: those that are sampled.
    """
    if kernels not in ("auto", "cpu") or not dense.takes(weight):
        return 0
    built_in = Verdict(DenseKernel.name, CROSSOVERS["cpu"]["dense"])
    if kernels == "cpu":
        return built_in.crossover_tokens
    forms = {DenseKernel.name: lambda: DenseKernel(weight, None, ALWAYS)}
    shape = f"{weight.shape[0]} x {weight.shape[1]} dense{' head' if is_head else ''}"
    most_tokens = DECODE_TOKENS if is_head else ALWAYS
    return _verdict(weight.device, weight.shape[1], shape, forms, built_in, most_tokens).crossover_tokens


def _fastest(packed: Packed, able: Mapping[str, Callable[[Packed, int], Kernel]]) -> Choice:
    builds = {**able, DenseKernel.name: DenseKernel.from_packed}
    forms = {name: partial(build, packed, ALWAYS) for name, build in builds.items()}
    built_in = Verdict(next(iter(able)), _crossover(packed))
    verdict = _verdict(packed.values.device, packed.shape[1], _shape(packed), forms, built_in)
    kernel = builds[verdict.form](packed, verdict.crossover_tokens)
    return Choice(kernel, SLOWER if verdict.form == DenseKernel.name else None)


def _verdict(
    device: torch.device,
    columns: int,
    shape: str,
    forms: Mapping[str, Callable[[], race.Way]],
    built_in: Verdict,
    most_tokens: int = ALWAYS,
) -> Verdict:
    """What was decided for this shape on this machine, or is decided now."""
    machine = verdicts.machine(device)
    known = verdicts.find(machine, shape)
    if known is not None and known.form in forms:
        return known
    if not verdicts.can_keep():
        return built_in
    started = time.perf_counter()
    results = race.race({name: build() for name, build in forms.items()}, columns, device, most_tokens)
    verdict = winner(results)
    verdicts.keep(machine, shape, verdict, {name: asdict(result) for name, result in results.items()})
    took = time.perf_counter() - started
    log.info("raced %s in %.1f s: %s", shape, took, verdict)
    return verdict


def winner(results: Mapping[str, Result]) -> Verdict:
    """The form that is fastest over the traffic; dense only if it is clearly faster, since it takes more memory."""
    totals = {
        name: result.total() * (HYSTERESIS if name == DenseKernel.name else 1) for name, result in results.items()
    }
    form = min(totals, key=lambda name: totals[name])
    return Verdict(form, results[form].crossover_tokens())


def _shape(packed: Packed) -> str:
    (rows, columns), values = packed.shape, str(packed.values.dtype).removeprefix("torch.")
    return f"{rows} x {columns} 2:4 {values}" + (f" / {packed.scale_columns}" if packed.scale_columns else "")


def _crossover(packed: Packed) -> int:
    values = str(packed.values.dtype).removeprefix("torch.")
    return CROSSOVERS.get(packed.values.device.type, {}).get(values, 0)


def _refusal(candidate: Candidate, packed: Packed) -> str | None:
    device = packed.values.device.type
    if device != candidate.device:
        return f"it runs on {candidate.device}, the weight is on {device}"
    return candidate.refusal(packed)


def _why(packed: Packed, refusals: Mapping[str, str | None]) -> str:
    device = packed.values.device.type
    here = [refusal for name, refusal in refusals.items() if refusal and CANDIDATES[name].device == device]
    return "; ".join(here) or "no 2:4 kernel for this device"
