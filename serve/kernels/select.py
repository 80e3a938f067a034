"""Which kernel multiplies by a 2:4 weight: the best that can take it, or the one that was asked for by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.packed import Packed
from twofour.serve.kernels import cusparselt, sparse_cpu
from twofour.serve.kernels.reference import ReferenceKernel


class Kernel(Protocol):
    """A 2:4 weight in the layout of one kernel."""

    name: ClassVar[str]

    @property
    def nbytes(self) -> int:
        """Resident bytes of the layout."""

    def packed(self) -> Packed:
        """Return the weight as it is stored."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias, [..., in] -> [..., out]."""


@dataclass(frozen=True)
class Candidate:
    """A kernel, the device it runs on, and why it may refuse a weight."""

    device: str
    build: Callable[[Packed], Kernel]
    refusal: Callable[[Packed], str | None]


CANDIDATES = {
    "cpu": Candidate("cpu", sparse_cpu.CpuKernel.from_packed, sparse_cpu.refusal),
    "cusparselt": Candidate("cuda", cusparselt.CusparseltKernel.from_packed, cusparselt.refusal),
}
NAMES = ("auto", "reference", *CANDIDATES)


@dataclass(frozen=True)
class Choice:
    """The kernel of one linear. `note`: why it is the reference where a sparse one was looked for."""

    kernel: Kernel
    note: str | None = None


def choose(packed: Packed, kernels: str = "auto") -> Choice:
    """Build the kernel for a weight on its device. Raises InputError for a name that is unknown or refuses."""
    if kernels not in NAMES:
        raise InputError(f"no kernel is named {kernels!r}; choose one of {', '.join(NAMES)}")
    if kernels == "reference":
        return Choice(ReferenceKernel.from_packed(packed))
    reasons = []
    for name, candidate in CANDIDATES.items():
        if kernels in ("auto", name):
            reason = _refusal(candidate, packed)
            if reason is None:
                return Choice(candidate.build(packed))
            reasons.append((candidate, reason))
    if kernels != "auto":
        raise InputError(f"the kernel {kernels} was asked for, but {reasons[0][1]}; choose auto")
    here = [reason for candidate, reason in reasons if candidate.device == packed.values.device.type]
    return Choice(ReferenceKernel.from_packed(packed), "; ".join(here) or "no 2:4 kernel for this device")


def _refusal(candidate: Candidate, packed: Packed) -> str | None:
    device = packed.values.device.type
    if device != candidate.device:
        return f"it runs on {candidate.device}, the weight is on {device}"
    return candidate.refusal(packed)
