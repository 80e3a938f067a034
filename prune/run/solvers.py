"""What a config means for one weight: how it is solved, and how it is rounded to what will be stored."""

from functools import partial

import torch
from torch import Tensor

from twofour.prune.config import PruneConfig
from twofour.prune.format import schemes
from twofour.prune.format.rounding import as_int8
from twofour.prune.format.schemes import Scheme
from twofour.prune.recovery.kept import Rounding
from twofour.prune.run.calibrate import NewStatistic, Solve, ToStored
from twofour.prune.solving.gptq import gptq
from twofour.prune.solving.refine import refine
from twofour.prune.solving.sparsegpt import sparsegpt
from twofour.prune.solving.statistics import Hessian, Norms, Statistic
from twofour.prune.solving.wanda import wanda


def solver(config: PruneConfig) -> tuple[Solve, NewStatistic]:
    """Return the solver, and what it wants to know of the inputs."""
    solvers: dict[str, tuple[Solve, NewStatistic]] = {
        "wanda": (lambda weight, norms: wanda(weight, norms.squares), Norms),
        "sparsegpt": (partial(_sparsegpt, config), Hessian),
        "refine": (partial(_refine, config), Hessian),
    }
    return solvers[config.stages.solver]


def to_stored(config: PruneConfig, stored_dtype: torch.dtype) -> ToStored:
    """Return the function that makes of a pruned weight the one that will be stored."""
    scheme = walked_scheme(config)
    return lambda weight: schemes.stored(weight, scheme, stored_dtype)


def walked_scheme(config: PruneConfig) -> Scheme:
    """Return the scheme that the walk leaves every linear in."""
    return "2:4-int8" if config.values == "int8" else "2:4"


def rounding(config: PruneConfig) -> Rounding | None:
    """Return what rounds kept weights in training, besides the dtype of the model."""
    return as_int8 if config.values == "int8" else None


def _sparsegpt(config: PruneConfig, weight: Tensor, hessian: Statistic) -> Tensor:
    assert isinstance(hessian, Hessian)
    pruned = sparsegpt(weight, hessian.matrix, config.damping, config.block_columns)
    return _made_up_for(config, pruned, hessian.matrix)


def _refine(config: PruneConfig, weight: Tensor, statistic: Statistic) -> Tensor:
    assert isinstance(statistic, Hessian)
    hessian = statistic.matrix
    start = sparsegpt(weight, hessian, config.damping, config.block_columns)
    refined = refine(weight, hessian, start, config.damping, block_columns=config.block_columns)
    return _made_up_for(config, refined, hessian)


def _made_up_for(config: PruneConfig, pruned: Tensor, hessian: Tensor) -> Tensor:
    """Where values become int8, round them here: with the Hessian, later columns make up for the errors."""
    return gptq(pruned, hessian, config.damping, config.block_columns) if config.values == "int8" else pruned
