"""Which kernel multiplies by a weight: the one that was asked for by name, or the one that won a race.

Each shape is raced once on a machine, all forms that can take the weight against dense; see race.py for how, and
verdicts.py for where the outcome is kept. A 2:4 weight that would be slower than dense becomes dense. A candidate that
cannot be built or raced is dropped and named (trial.py): the model loads without it, and if it works again later, the
shape is raced again. A race beside other work decides nothing: the built-in verdict holds until the next start.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from twofour.prune.errors import InputError, in_a_line
from twofour.prune.format.packed import Packed
from twofour.prune.machine.contention import Measurement
from twofour.serve.kernels import dense, race, trial, verdicts
from twofour.serve.kernels.cpu import kernel as cpu_kernel
from twofour.serve.kernels.cusparselt import kernel as cusparselt
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.kernels.race import ALWAYS, DECODE_TOKENS, Result
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.kernels.rounded import Rounded, rounded
from twofour.serve.kernels.trial import Problem
from twofour.serve.kernels.triton import kernel as triton_kernel
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
        """Up to this many tokens take the path for few."""

    def packed(self) -> Packed:
        """Return the weight as it is stored."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias, [..., in] -> [..., out]."""


Build = Callable[[Packed, int], Kernel]  # from a weight and the crossover in tokens
W = TypeVar("W", bound=race.Way)


@dataclass(frozen=True)
class Candidate:
    """A kernel, the device it runs on, and why it may refuse a weight."""

    device: str
    build: Build
    refusal: Callable[[Packed], str | None]


CANDIDATES = {
    "cpu": Candidate("cpu", cpu_kernel.CpuKernel.from_packed, cpu_kernel.refusal),
    "triton": Candidate("cuda", triton_kernel.TritonKernel.from_packed, triton_kernel.refusal),
    "cusparselt": Candidate("cuda", cusparselt.searched, cusparselt.refusal),
}
NAMES = ("auto", "reference", *CANDIDATES)
SLOWER = "dense is faster on this machine"

_undecided: set[tuple[str, str]] = set()  # machines and shapes whose race was beside other work: not raced again here

# If nothing can be raced, or one kernel is asked for: in tokens, by device and values. On a CPU all take one path, with
# one order of additions: a text must not depend on how many tokens were computed at a time. On a GPU it is a guess.
CROSSOVERS = {
    "cpu": {"bfloat16": ALWAYS, "int8": ALWAYS, "dense": ALWAYS},
    "cuda": {"bfloat16": 64, "float16": 64},
}


@dataclass(frozen=True)
class Choice:
    """The kernel of one linear. `note`: why it multiplies by a dense weight, if it does.

    `dropped`: candidates that could not take part, and why. `rounded`: gives the int8 values back, if the kernel holds
    them in the dtype of the activations.
    """

    kernel: Kernel
    note: str | None = None
    dropped: tuple[str, ...] = ()
    rounded: Rounded | None = None

    @property
    def nbytes(self) -> int:
        """Resident bytes."""
        return self.kernel.nbytes + (self.rounded.nbytes if self.rounded else 0)

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        held = self.kernel.packed()
        return self.rounded.stored(held) if self.rounded else held


def choose(packed: Packed, kernels: str = "auto", dtype: torch.dtype | None = None) -> Choice:
    """Build the kernel for a weight on its device. Raises InputError for a name that is unknown or refuses.

    `dtype` is that of the activations, if it is known. int8 values are rounded to it if no kernel takes them.
    """
    require_name(kernels)
    if kernels == "reference":
        return _expanded(packed, dtype)
    if dtype is None or packed.scales is None or _takes_int8(packed, kernels):
        return _choose(packed, kernels, dtype)
    held, back = rounded(packed, dtype)
    return replace(_choose(held, kernels, dtype), rounded=back)


def _takes_int8(packed: Packed, kernels: str) -> bool:
    names = CANDIDATES if kernels == "auto" else [kernels]
    return any(_refusal(CANDIDATES[name], packed) is None for name in names)


def _choose(packed: Packed, kernels: str, dtype: torch.dtype | None) -> Choice:
    refusals = {name: _refusal(candidate, packed) for name, candidate in CANDIDATES.items()}
    if kernels != "auto":
        if refusals[kernels]:
            raise InputError(f"the kernel {kernels} was asked for, but {refusals[kernels]}; choose auto")
        return Choice(CANDIDATES[kernels].build(packed, _crossover(packed)))
    able = {name: CANDIDATES[name].build for name, refusal in refusals.items() if refusal is None}
    return _fastest(packed, able, _problem(packed, dtype)) if able else _expanded(packed, dtype, _why(packed, refusals))


def _expanded(
    packed: Packed, dtype: torch.dtype | None, why: str | None = None, dropped: tuple[str, ...] = ()
) -> Choice:
    if packed.scales is None or dtype is None:
        return Choice(ReferenceKernel.from_packed(packed), why, dropped)
    held, back = rounded(packed, dtype)
    return Choice(ReferenceKernel.from_packed(held), why, dropped, back)


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
    problem = Problem(shape, weight.shape[1], weight.device, weight.dtype)
    return _verdict(problem, forms, built_in, DECODE_TOKENS if is_head else ALWAYS).crossover_tokens


def _fastest(packed: Packed, able: Mapping[str, Build], problem: Problem) -> Choice:
    """The winner of the kernels in `able`. If one is dropped on the way, the winner of the others."""
    reasons = trial.dropped(problem)
    left = {name: build for name, build in able.items() if name not in reasons}
    dropped = tuple(f"{name}: {reasons[name]}" for name in able if name in reasons)
    if not left:
        return _expanded(packed, problem.dtype, "; ".join(dropped), dropped)
    builds: dict[str, Build] = {**left, DenseKernel.name: partial(DenseKernel.from_packed, dtype=problem.dtype)}
    forms = {name: partial(build, packed, ALWAYS) for name, build in builds.items()}
    verdict = _verdict(problem, forms, Verdict(next(iter(left)), _crossover(packed)))
    kernel = _attempt(problem, verdict.form, partial(builds[verdict.form], packed, verdict.crossover_tokens))
    if kernel is None or len(trial.dropped(problem)) > len(reasons):
        return _fastest(packed, able, problem)
    return Choice(kernel, SLOWER if verdict.form == DenseKernel.name else None, dropped)


def _attempt(problem: Problem, name: str, build: Callable[[], W]) -> W | None:
    """Dense is not dropped: if it fails nothing works."""
    return build() if name == DenseKernel.name else trial.attempt(problem, name, build)


def _verdict(
    problem: Problem, forms: Mapping[str, Callable[[], race.Way]], built_in: Verdict, most_tokens: int = ALWAYS
) -> Verdict:
    """The verdict on this shape on this machine, from before or from a race now."""
    machine = verdicts.machine(problem.device)
    known = verdicts.find(machine, problem.shape)
    if known is not None and known.form in forms and not _is_back(problem, known, forms):
        return known
    if not verdicts.can_keep() or (machine, problem.shape) in _undecided:
        return built_in
    measurement = Measurement()
    results = _raced(problem, forms, most_tokens)
    took = measurement.seconds
    if problem.device.type == "cpu" and measurement.was_disturbed():
        _undecided.add((machine, problem.shape))
        log.warning("raced %s beside other work: nothing is kept, and the built-in choice holds", problem.shape)
        return built_in
    verdict = replace(winner(results), dropped=tuple(trial.dropped(problem)))
    seconds = {name: result.seconds() | _warned(name) for name, result in results.items()}
    verdicts.keep(machine, problem.shape, verdict, seconds)
    log.info("raced %s in %.1f s: %s", problem.shape, took, verdict)
    return verdict


def _is_back(problem: Problem, known: Verdict, forms: Mapping[str, Callable[[], race.Way]]) -> bool:
    """Whether a form that was dropped before this verdict can take part now."""
    return any(_attempt(problem, name, forms[name]) is not None for name in known.dropped if name in forms)


def _raced(problem: Problem, forms: Mapping[str, Callable[[], race.Way]], most_tokens: int) -> dict[str, Result]:
    """Race the forms that can take part."""
    tried = {name: _attempt(problem, name, build) for name, build in forms.items()}
    built = {name: form for name, form in tried.items() if form is not None}
    while True:
        try:
            return race.race(built, problem.columns, problem.device, problem.dtype, most_tokens)
        except race.Failed as failed:
            if failed.form == DenseKernel.name:
                raise failed.cause from None
            trial.drop(problem, failed.form, failed.cause)
            del built[failed.form]


def _warned(name: str) -> dict[str, str]:
    """A known defect of the library with which these seconds were measured."""
    warning = cusparselt.warning() if name == cusparselt.CusparseltKernel.name else None
    return {"warning": warning} if warning else {}


def winner(results: Mapping[str, Result]) -> Verdict:
    """The form that is fastest over the traffic; dense only if it clearly is, since it takes more memory."""
    others = {name: result for name, result in results.items() if name != DenseKernel.name} or results
    form = min(others, key=lambda name: others[name].total())
    if DenseKernel.name in results and results[DenseKernel.name].clearly_beats(results[form]):
        form = DenseKernel.name
    return Verdict(form, results[form].crossover_tokens())


def _problem(packed: Packed, dtype: torch.dtype | None) -> Problem:
    """int8 values take activations of any dtype, usually bfloat16; other values take their own dtype."""
    (rows, columns), values = packed.shape, str(packed.values.dtype).removeprefix("torch.")
    x = packed.values.dtype if packed.scales is None else dtype or torch.bfloat16
    scales = f" / {packed.scale_columns}" if packed.scale_columns else ""
    other = f" by {x}" if packed.scales is not None and x != torch.bfloat16 else ""
    return Problem(f"{rows} x {columns} 2:4 {values}{scales}{other}", columns, packed.values.device, x)


def _crossover(packed: Packed) -> int:
    values = str(packed.values.dtype).removeprefix("torch.")
    return CROSSOVERS.get(packed.values.device.type, {}).get(values, 0)


def _refusal(candidate: Candidate, packed: Packed) -> str | None:
    device = packed.values.device.type
    if device != candidate.device:
        return f"it runs on {candidate.device}, the weight is on {device}"
    try:
        return candidate.refusal(packed)
    except Exception as error:  # a library that is installed and broken, for instance
        log.warning("a kernel cannot say whether it takes a weight", exc_info=True)
        return in_a_line(error)


def _why(packed: Packed, refusals: Mapping[str, str | None]) -> str:
    device = packed.values.device.type
    here = [refusal for name, refusal in refusals.items() if refusal and CANDIDATES[name].device == device]
    return "; ".join(here) or "no 2:4 kernel for this device"
