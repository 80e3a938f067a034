"""Model folders as places: found by name, made whole or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from twofour.prune.errors import CheckpointError, InputError, OutputError, TwofourError

REDIRECTS = ("transformers_weights", "configuration_files")  # to other weights, to another config.json
# What is fetched of a hub model: no second copy of its weights, such as Mistral's consolidated.safetensors.
SNAPSHOT = [
    *(f"{stem}{shard}.safetensors" for stem in ("model", "model.twofour") for shard in ("", "-*-of-*")),
    *("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md"),
]
NO_MORE = {
    errno.ENOSPC: "is full; free some space and run again",
    errno.EDQUOT: "has none of your quota left; free some space and run again",
    errno.EFBIG: "takes no file of that size; raise the limit (ulimit -f) and run again",
    errno.EIO: "gives input/output errors; see the kernel's log (dmesg), and run again on one that is whole",
}
ADAPTER = "adapter_config.json"  # of PEFT


def resolve(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: the folder itself, or the snapshot of a hub id."""
    folder = Path(model)
    require_readable(folder)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{model} is a folder, which has no revision {revision}; leave out --revision")
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"{model} is not a folder; give a model folder or a hub id")
    return _snapshot(model, revision)


def _snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=SNAPSHOT))
    except Exception as error:  # the hub client raises a dozen kinds, offline and not
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{model} is no folder here, and the hub does not give it ({reason}); check the name"
        ) from error


def require_readable(folder: Path) -> None:
    """Raise CheckpointError, naming the first, where this process may not read something of a model folder."""
    for path, how in _what_is_read(folder):
        if os.path.exists(path) and not os.access(path, how, effective_ids=os.access in os.supports_effective_ids):
            remedy = f"chmod a+x {path}" if path in folder.parents else f"chmod -R a+rX {folder}"
            raise CheckpointError(f"{path} may not be read by user {os.geteuid()}; allow it ({remedy})")


def _what_is_read(folder: Path) -> Iterator[tuple[Path, int]]:
    yield from ((parent, os.X_OK) for parent in reversed(folder.parents))
    yield folder, os.R_OK | os.X_OK
    if os.path.isdir(folder):
        named = [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in SNAPSHOT)]
        yield from ((path, os.R_OK) for path in sorted(named))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; give an intact model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); take an intact copy") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object; take an intact copy")
    return document


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises CheckpointError where it sends transformers to files that twofour does not read, or files may not be read.
    """
    require_readable(folder)
    config = read_json(folder / "config.json")
    if found := [key for key in REDIRECTS if key in config]:
        raise CheckpointError(
            f"config.json of {folder} names {found[0]}, by which transformers reads other files than twofour; "
            "give a folder whose files have their usual names"
        )
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds {ADAPTER}, whose weights some installations add to the model; merge them into it first"
        )
    return config


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON object as people read it. Raises CheckpointError for values that JSON cannot hold."""
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be written as JSON ({error}); take an intact copy") from error
    path.write_text(text + "\n", encoding="utf-8")


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a file whole or not at all, even where the machine stops. text: in one piece, or in many."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
        put(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def put(written: Path, path: Path) -> None:
    """Give a written file its name once its bytes are on the disk, so that a machine that stops leaves no empty file.

    The name itself is on the disk after a `sync` of the folder.
    """
    sync(written)
    written.replace(path)


def sync(path: Path) -> None:
    """Return when what was written to a file, or which names a folder holds, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Raise OutputError, naming the path, where something cannot be made."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror}); choose another place") from error


@contextmanager
def new_folder(out: Path, inside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `out` at the end, or vanishes if anything goes wrong.

    inside: an existing folder on the same disk that holds it until then; None: the one that will hold `out`.
    """
    refuse_existing(out)
    with making(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=inside or out.parent))
    try:
        yield part
        _publish(part, out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if fault := no_more(error):
            raise OutputError(f"the disk of {out.parent} {fault}") from error
        raise


def refuse_existing(out: Path) -> None:
    """Raise OutputError if something has that name already, or nothing can have it."""
    with making(out):
        exists = out.exists() or out.is_symlink()
    if exists:
        raise OutputError(f"{out} exists already; choose another name or remove it")


def require_space(out: Path, needed_bytes: int) -> None:
    """Raise OutputError unless the disk of `out` has room for that much."""
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise OutputError(
            f"{parent} has {free / 1e6:,.1f} MB free, the result needs {needed_bytes / 1e6:,.1f} MB; free some space"
        )


def no_more(error: BaseException) -> str | None:
    """Say what a disk lacks and what to do, if that is what an error means; safetensors has only its text for it."""
    if isinstance(error, TwofourError):  # which says so itself, maybe of another disk
        return None
    text = str(error)
    return next((NO_MORE[n] for n in NO_MORE if getattr(error, "errno", None) == n or f"(os error {n})" in text), None)


def _publish(part: Path, out: Path) -> None:
    """Let others read it as they may read any file of this user; safetensors and mkdtemp let nobody."""
    allowed = ~_umask()
    for path in [*part.rglob("*"), part]:
        path.chmod((0o777 if path.is_dir() else 0o666) & allowed)
        sync(path)
    part.rename(out)
    sync(out.parent)


def _umask() -> int:
    now = os.umask(0o077)  # it can only be read by setting it
    os.umask(now)
    return now
