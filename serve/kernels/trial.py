"""Forms of a weight that could not be built or could not multiply: dropped by name, with the reason.

What a candidate needs (a C compiler, a library, a driver that knows the device) shows only when it is built and run. So
the first of each shape multiplies once before it is used, and one that raises is dropped for that shape until the
process ends. If the device does not answer after that, no other candidate would help, and an error is raised.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from twofour.prune.errors import ServerError, in_a_line
from twofour.serve.kernels.race import Way

log = logging.getLogger(__name__)

# All tiles of the Triton kernels, and the expansion: whatever a graph or a prompt may launch. A CPU compiles nothing.
TRIAL_TOKENS = {"cuda": (1, 32, 64, 256)}

W = TypeVar("W", bound=Way)
_tried: dict[tuple["Problem", str], str | None] = {}  # for each form: why it was dropped; None: it multiplies


@dataclass(frozen=True)
class Problem:
    """What a form is tried on: weights of one shape [out, columns] on one device, activations in one dtype."""

    shape: str
    columns: int
    device: torch.device
    dtype: torch.dtype


def attempt(problem: Problem, name: str, build: Callable[[], W]) -> W | None:
    """Build a form, and multiply once by the first weight of the problem. If either fails, drop it and return None."""
    if _tried.get((problem, name)):
        return None
    try:
        form = build()
        if (problem, name) not in _tried:
            _multiply(form, problem)
    except Exception as error:  # whatever a kernel, its compiler or its library raises
        drop(problem, name, error)
        return None
    _tried[problem, name] = None
    return form


def drop(problem: Problem, name: str, error: Exception) -> None:
    """Drop a form here. Raises ServerError if the device no longer answers."""
    reason = in_a_line(error)
    try:
        _wait(problem.device)
    except RuntimeError as broken:
        raise ServerError(
            f"{problem.device} does not answer after the kernel {name} failed ({reason}); choose other --kernels"
        ) from broken
    log.warning("the kernel %s is dropped for %s", name, problem.shape, exc_info=error)
    _tried[problem, name] = reason


def dropped(problem: Problem) -> dict[str, str]:
    """The forms that were dropped here, and why."""
    return {name: reason for (where, name), reason in _tried.items() if where == problem and reason}


def _multiply(form: Way, problem: Problem) -> None:
    with torch.inference_mode():
        for tokens in TRIAL_TOKENS.get(problem.device.type, (1,)):
            form(torch.zeros(tokens, problem.columns, dtype=problem.dtype, device=problem.device), None)
    _wait(problem.device)


def _wait(device: torch.device) -> None:
    """Wait until what was launched has ended: an error of a kernel is known only then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
