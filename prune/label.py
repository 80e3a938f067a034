"""The label of a pruned folder: its manifest, twofour.json, and the model card that is made from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofour.prune import checkpoint
from twofour.prune.card import card
from twofour.prune.checkpoint import MANIFEST
from twofour.prune.errors import InputError
from twofour.prune.folder import read_json, write_whole
from twofour.prune.origin import README
from twofour.prune.recipe import versions


def write(part: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Write the label of a new folder, whose name will be `name`; the manifest comes last."""
    if "origin" in manifest:  # else it was made of a checkpoint that twofour did not prune
        (part / README).write_text(card(manifest, name, checkpoint.form_of(part)), encoding="utf-8")
    checkpoint.write_manifest(part, manifest)


def require_labelled(folder: Path) -> None:
    """Raise InputError unless this is a folder that `prune` wrote, so that its label can be added to."""
    if not (folder / MANIFEST).exists() or "origin" not in read_json(folder / MANIFEST):
        raise InputError(f"{folder} has no label of twofour prune to write into; leave out --label")


def add_quality(folder: Path, text: str, figures: Mapping[str, Any]) -> None:
    """Put what was measured on a text on the label, in the place of what it said of that text before.

    The card is made anew, the digests stay those of the pruning run.
    """
    require_labelled(folder)
    manifest = read_json(folder / MANIFEST)
    manifest["quality"] = manifest.get("quality", {}) | {text: {**figures, "versions": versions()}}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    write_whole(folder / README, card(manifest, folder.resolve().name, checkpoint.form_of(folder)))
