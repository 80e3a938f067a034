"""Where a pruned model comes from: the name and the licence of its base model, as its folder states them.

The front matter of README.md counts first, then config.json, then the mere presence of a LICENSE file, which the hub's
front matter calls "other" with a link. Nothing is guessed from what a licence text says.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twofour.prune.errors import CheckpointError
from twofour.prune.format.folder import read_config

README = "README.md"
LICENCE_FILES = ("LICENSE*", "NOTICE*")
LICENCE_KEYS = ("license", "license_name", "license_link")


def origin(model: str, source: Path) -> dict[str, Any]:
    """Describe the base model for the manifest. `source`: where `model`, a folder or a hub id, lies.

    A local folder is called by its name alone, for its path means nothing elsewhere. Its base model, which may have a
    public name, is the one that its README.md states. Raises CheckpointError where that front matter cannot be read.
    """
    readme = _front_matter(source / README)
    files = sorted(path.name for pattern in LICENCE_FILES for path in source.glob(pattern))
    stated: tuple[str | None, Mapping[str, Any]] = next(_statements(source, readme, files), (None, {}))
    is_folder, above = source == Path(model), readme.get("base_model")
    return {
        "name": source.resolve().name if is_folder else model,
        "base_model": (above if isinstance(above, str) else None) if is_folder else model,
        "commit": _commit(source),
        "licence_from": stated[0],
        "licence": {key: str(stated[1][key]) for key in LICENCE_KEYS if stated[1].get(key)},
        "licence_files": files,
    }


def _commit(source: Path) -> str | None:
    """The commit of a snapshot of the hub, which is the name of its folder; None for other folders."""
    return source.name if source.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", source.name) else None


def _statements(source: Path, readme: Mapping[str, Any], files: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every place that states a licence, with what it states."""
    for place, stated in ((README, readme), ("config.json", read_config(source))):
        if stated.get("license"):
            yield place, stated
    for name in files:
        if name.startswith("LICENSE"):
            yield name, {"license": "other", "license_name": "as in the file", "license_link": name}


def _front_matter(readme: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    if not readme.is_file():
        return {}
    try:
        return metadata_load(readme) or {}
    except (ValueError, YAMLError) as error:  # text that is not UTF-8 is a ValueError
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"the front matter of {readme} cannot be read ({reason}); mend or remove it") from error
