"""The report of a pruning run: where the loss sits and what recovery won back, as one page from the manifest alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from twofour.prune.label import charts, mixture, pages
from twofour.prune.label.card import NOT_MEASURED, QUALITY_HEAD, done, processor, quality_note, quality_rows

REPORT = "report.html"
WORST = 10

Linears = Mapping[str, Mapping[str, Any]]
Losses = dict[str, list[float | None]]  # kind -> the mean loss by block; None where a block has none of it


def page(manifest: Mapping[str, Any], name: str) -> str:
    """Write the page. `name`: of the pruned folder."""
    losses, blocks = by_kind_and_depth(manifest["linears"]), _recovered(manifest)
    return pages.rendered(
        "twofour.prune.label",
        "report.html",
        name=name,
        manifest=manifest,
        figures=_figures(manifest),
        left_dense=mixture.left_dense(manifest) or "none",
        schemes_note=mixture.NOTE,
        schemes_head=mixture.HEAD,
        schemes=mixture.share_rows(manifest) if mixture.is_mixed(manifest) else [],
        dense_lines=mixture.dense_lines(manifest),
        map=charts.cells(
            "Loss by kind of linear and by block", "The stronger the colour, the more is lost.", losses, "block"
        ),
        kinds=_kinds(losses),
        worst=worst(manifest["linears"]),
        recovery=charts.curves("Loss of block outputs", "By block, before and after recovery.", blocks, "block")
        if blocks
        else None,
        outcomes=list(zip(*blocks.values(), strict=True)),
        quality_head=QUALITY_HEAD,
        quality=quality_rows(manifest),
        quality_note=quality_note(manifest) if manifest.get("quality") else NOT_MEASURED.format(name=name),
        done=list(done(manifest)),
    )


def by_kind_and_depth(linears: Linears) -> Losses:
    """The mean relative loss of the linears of one kind in one block, kinds in the order of the model."""
    found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, linear in linears.items():
        found[name.rpartition(".")[2]][block_of(name)].append(linear["loss"])
    depth = 1 + max(block for blocks in found.values() for block in blocks)
    return {
        kind: [fmean(blocks[block]) if block in blocks else None for block in range(depth)]
        for kind, blocks in found.items()
    }


def block_of(name: str) -> int:
    """The number of the block a linear is in: the first number of its name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def worst(linears: Linears) -> list[tuple[str, float]]:
    """The linears that lose most."""
    losses = sorted(((name, linear["loss"]) for name, linear in linears.items()), key=lambda each: -each[1])
    return losses[:WORST]


def _kinds(losses: Losses) -> list[tuple[str, float, float]]:
    """Each kind with its mean and its largest loss."""
    known = {kind: [value for value in values if value is not None] for kind, values in losses.items()}
    return [(kind, fmean(values), max(values)) for kind, values in known.items()]


def _recovered(manifest: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """The losses of the block outputs before and after they were trained; empty where they were not."""
    outcomes = (manifest["recovery"] or {}).get("blocks", [])
    return {moment: [outcome[moment] for outcome in outcomes] for moment in ("before", "after")} if outcomes else {}


def _figures(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What stands at the head of the page: a name, a number, and what it means."""
    linears = manifest["linears"]
    (top, loss), *_ = worst(linears)
    shown = [
        ("mean loss of a linear", f"{fmean(linear['loss'] for linear in linears.values()):.4f}", "relative"),
        ("largest", f"{loss:.4f}", top),
        ("time", f"{manifest['minutes']:.1f} min", processor(manifest)),
        ("peak memory", f"{manifest['peak_memory_bytes'] / 2**30:.2f} GiB", "resident"),
    ]
    whole = (manifest["recovery"] or {}).get("model")
    if whole:
        detail = f"nats on held-out text; {whole['before']:.4f} before the model was trained as a whole"
        detail += "; all before lm_head was rounded" if manifest.get("lm_head") else ""
        shown.insert(2, ("KL to dense", f"{whole['after']:.4f}", detail))
    return shown
