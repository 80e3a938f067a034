"""Which scheme each linear of the decoder blocks gets, and the walked model made into that mixture.

The walk solves all linears to 2:4. Then those that are to be otherwise become it: a dense one has its weight of the
dense model again, and int8 ones are rounded. Linears that are given one tensor (q, k and v; gate and up) get one
scheme: programs that merge them into one product need that.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.format import schemes
from twofour.prune.format.dense import Dense
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, StoredWeight, expanded, scheme_of
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.batches import TRIAL_TOKENS, propagate, record
from twofour.prune.run.calibrate import collect
from twofour.prune.solving.statistics import Norms

Make = Callable[[], StoredWeight]


@dataclass(frozen=True)
class Kept:
    """The linears that the user keeps dense, by their names in the model.

    why: of each of them. notes: what is kept besides those that were asked for.
    """

    scheme: Scheme = "dense"
    why: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Mixed:
    """The walked model as a mixture: the scheme of each linear, and what makes its weight before all are trained.

    policy: why it is this one, for the label, where it was chosen.
    """

    schemes: Mapping[str, Scheme]
    makers: Mapping[str, Make]
    policy: Mapping[str, Any] | None = None


def kept(config: PruneConfig, anatomy: Anatomy, names: Mapping[str, str]) -> Kept:
    """Find the linears that `keep_dense` names, and those that share their inputs. names: of all in the folder.

    Raises InputError for a pattern that names none, and where nothing is left to be 2:4.
    """
    if not config.keep_dense:
        return Kept()
    asked = _asked(config.keep_dense, {name: names[name] for name in anatomy.linears})
    groups = [group for group in shared_inputs(anatomy) if asked.keys() & set(group)]
    if sum(map(len, groups)) == len(anatomy.linears):
        raise InputError("keep_dense leaves nothing that becomes 2:4; give patterns of fewer linears")
    leaders = {name: next(each for each in group if each in asked) for group in groups for name in group}
    drawn = [name for name in leaders if name not in asked]
    why = {name: f"kept dense, as {pattern!r} asks" for name, pattern in asked.items()}
    why |= {name: f"kept dense with {names[leaders[name]]}, which has the same input" for name in drawn}
    scheme: Scheme = "dense-int8" if config.keep_dense_values == "int8" else "dense"
    return Kept(scheme, why, _notes([names[name] for name in drawn]))


def _asked(patterns: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """The linears that patterns name, each with the first that does."""
    for pattern in patterns:
        if not any(fnmatchcase(stored, pattern) for stored in names.values()):
            raise InputError(
                f"keep_dense {pattern!r} names no linear of the decoder blocks; their names are like "
                f"{next(iter(names.values()))}"
            )
    found = {name: next((p for p in patterns if fnmatchcase(stored, p)), None) for name, stored in names.items()}
    return {name: pattern for name, pattern in found.items() if pattern is not None}


def _notes(drawn: Sequence[str]) -> list[str]:
    if not drawn:
        return []
    return [
        f"{len(drawn)} linears are dense beside those that were asked for ({drawn[0]} first): they have the same "
        "input, and such linears are stored alike, for other programs merge them"
    ]


@torch.no_grad()
def shared_inputs(anatomy: Anatomy) -> list[list[str]]:
    """List the linears that are given one tensor, block by block, as a few tokens show it."""
    vocabulary: int = anatomy.model.config.vocab_size  # type: ignore[union-attr, assignment]
    batches = record(anatomy, torch.arange(TRIAL_TOKENS)[None] % vocabulary)
    groups: list[list[str]] = []
    for index, block in enumerate(anatomy.blocks):
        groups += [names for names, _ in collect(block, index, batches, Norms).groups()]
        propagate(block, index, batches)
    return groups


def mixture(names: Collection[str], walked: Scheme, kept: Kept) -> dict[str, Scheme]:
    """Return the scheme of each linear. walked: what the walk leaves all of them in."""
    return {name: kept.scheme if name in kept.why else walked for name in names}


def makers(
    mixture: Mapping[str, Scheme],
    walked: Mapping[str, Make],
    source: Path,
    names: Mapping[str, str],
    dtype: torch.dtype,
) -> dict[str, Make]:
    """Return what makes each weight of a mixture.

    walked: what makes them 2:4. names: of the linears in the folder `source`.
    """
    return {
        name: partial(_two_of_four, walked[name], scheme, dtype)
        if scheme in TWO_OF_FOUR
        else partial(_dense, source, names[name], scheme)
        for name, scheme in mixture.items()
    }


def _two_of_four(make: Make, scheme: Scheme, dtype: torch.dtype) -> StoredWeight:
    weight = make()
    return weight if scheme_of(weight) == scheme else schemes.stored(expanded(weight), scheme, dtype)


def _dense(source: Path, name: str, scheme: Scheme) -> StoredWeight:
    with Dense(source) as weights:
        weight = weights[f"{name}.weight"]
    return schemes.stored(weight, scheme, weight.dtype, name)


@torch.no_grad()
def put_in_place(anatomy: Anatomy, makers: Mapping[str, Make]) -> None:
    """Give linears of the model these weights."""
    for name, make in makers.items():
        anatomy.linears[name].weight.copy_(expanded(make()))


def trained_weights(anatomy: Anatomy, mixed: Mixed) -> dict[str, Make]:
    """Return what makes each 2:4 weight of the model in memory as it will be stored."""
    linears, dtype = anatomy.linears, anatomy.stored_dtype
    return {
        name: partial(_trained_weight, linears[name], scheme, dtype)
        for name, scheme in mixed.schemes.items()
        if scheme in TWO_OF_FOUR
    }


def _trained_weight(linear: nn.Linear, scheme: Scheme, dtype: torch.dtype) -> StoredWeight:
    """Return a weight of the model in memory as it will be stored."""
    return schemes.stored(linear.weight.float(), scheme, dtype).cpu()
