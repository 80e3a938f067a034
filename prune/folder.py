"""Folders that appear whole or not at all, and the small files in them."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from twofour.prune.errors import CheckpointError, OutputError

_CHUNK_BYTES = 1 << 20


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of `out` to fill; it becomes `out` on success and vanishes on any failure."""
    out = out.absolute()
    refuse_existing(out)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        refuse_existing(out)
        partial.rename(out)
        _fsync(out.parent)
    except (OSError, SafetensorError) as error:
        if reason := _output_failure(error):
            raise OutputError(f"cannot write {out}: {reason}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raise OutputError where something has that name already: call it before hours of work, too."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already; give another name or remove it")


def _output_failure(error: Exception) -> str | None:
    """The fact and the remedy, if this is a failure to write. safetensors reports the system's error as text."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error) or "code: 28" in str(error):
        return "the disk is full; free some space or give a folder on another disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return f"{os.strerror(number)}; give a folder in a place where you may write"
    return None


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError, naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; take an intact copy of the folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON; take an intact copy of the folder") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; take an intact copy of the folder")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object for people and programs alike. NaN and infinity are refused: JSON has none."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
