"""The label of a pruned folder: its manifest, twofour.json, and what is made from it: model card and report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofour.prune.errors import CheckpointError, InputError
from twofour.prune.format import checkpoint
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json, write_whole
from twofour.prune.format.origin import README
from twofour.prune.label.card import card
from twofour.prune.label.report import REPORT, page
from twofour.prune.machine.provenance import versions

CONVERTED = "converted_from"  # on the label of a folder that another tool made 2:4, the form it had


def write(part: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Write the label of a new folder, whose name will be `name`; the manifest comes last."""
    _write_readable(part, manifest, name)
    checkpoint.write_manifest(part, manifest)


def require_labelled(folder: Path) -> None:
    """Raise InputError unless `prune` or `convert` wrote this folder and its label, so that it can be added to."""
    if not (folder / MANIFEST).exists() or not {"origin", CONVERTED}.intersection(read_json(folder / MANIFEST)):
        raise InputError(f"{folder} has no label of twofour prune to write into; leave out --label")


def add_quality(
    folder: Path,
    text: str,
    figures: Mapping[str, Any],
    tasks: Mapping[str, Any] | None = None,
    answers: Mapping[str, Any] | None = None,
) -> None:
    """Write on the label what was measured on a text; it replaces what the label said of that text before.

    tasks: scores of lm-eval by task; answers: figures on answers to some `questions`; likewise. Card and report are
    made anew; the digests stay those of the run.
    """
    require_labelled(folder)
    manifest = read_json(folder / MANIFEST)
    manifest["quality"] = manifest.get("quality", {}) | {text: {**figures, "versions": versions()}}
    if tasks:
        manifest["lm_eval"] = manifest.get("lm_eval", {}) | dict(tasks)
    if answers:
        about = {name: value for name, value in answers.items() if name != "questions"}
        manifest["answers"] = manifest.get("answers", {}) | {answers["questions"]: about | {"versions": versions()}}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    _write_readable(folder, manifest, folder.resolve().name)


def _write_readable(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Write card and report, unless another tool pruned this: then README.md is that of its maker."""
    if "origin" not in manifest:
        return
    form = checkpoint.form_of(folder)
    try:
        readable = {README: card(manifest, name, form), REPORT: page(manifest, name)}
        for text in readable.values():
            text.encode()  # JSON can hold half a character
    except Exception as error:  # a label from elsewhere can hold anything
        raise CheckpointError(
            f"{MANIFEST} is no label as twofour prune writes it ({type(error).__name__}: {error}); take an intact copy"
        ) from error
    for file, text in readable.items():
        write_whole(folder / file, text)
