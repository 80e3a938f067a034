"""The file of one stage: a row for each cell, written as soon as there is one.

A session can be cut off at any moment and costs much. So every row is written at once; a row that is there is not
measured again on the same device with the same code; and what raises is a row, too, with its reason. An error that
leaves the device in an undefined state ends the stage; when it is started again, it goes on after that row.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import twofour.bench
import twofour.prune
import twofour.serve
from twofour.bench.hardware import versions
from twofour.prune.errors import in_a_line
from twofour.prune.format.folder import write_whole

KIND = "twofour.bench.gpu"
SCHEMA_VERSION = 1
LAST_LINES = 6

Key = Mapping[str, str | int | bool]
Found = Mapping[str, Any]


class Sheet:
    """Rows of one stage. `until`: when to begin nothing more, on `clock`."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        made_by: Mapping[str, Any],
        until: float,
        keep_failures: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._stage, self._made_by = folder / f"gpu-{stage}.json", stage, dict(made_by)
        self.until, self._clock = until, clock
        self.rows = [row for row in self._earlier() if keep_failures or "failed" not in row]
        self.left: list[Key] = []
        self._write()

    def cell(self, key: Key, measure: Callable[[], Found]) -> None:
        """Add a row unless it is there or time is over."""
        if any(key.items() <= row.items() for row in self.rows):
            return
        if self._clock() >= self.until:
            return self.leave(key)
        self.rows.append({**key, "failed": "the process died, or was ended, while this was measured"})
        self._write()
        try:
            found = measure()
        except torch.AcceleratorError as error:
            self._finish(key, failure(error))
            raise
        except Exception as error:  # whatever a contender does: the others have their turn
            found = failure(error)
        self._finish(key, found)

    def leave(self, key: Key) -> None:
        """Note that there was no time for a cell."""
        self.left.append(key)
        self._write()

    def _finish(self, key: Key, found: Found) -> None:
        self.rows[-1] = {**key, **found}
        self._write()

    def _write(self) -> None:
        document = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "stage": self._stage,
            "made_by": self._made_by,
            "rows": self.rows,
            "left_for_want_of_time": self.left,
        }
        write_whole(self._file, json.dumps(document, indent=1) + "\n")

    def _earlier(self) -> list[dict[str, Any]]:
        """Rows of an earlier session, where it was the same code on the same device."""
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            return list(document["rows"]) if document["made_by"] == self._made_by else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            return []


def failure(error: Exception) -> dict[str, Any]:
    where = traceback.format_exc().splitlines()[-LAST_LINES:]
    return {"failed": in_a_line(error)[:300], "where": where}


def made_by(device: str) -> dict[str, Any]:
    """All that a row depends on but its key."""
    on = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {"device": on, "cuda": torch.version.cuda, "versions": versions("triton"), "code": code()}


def code() -> str:
    """A digest of this package."""
    digest = hashlib.sha256()
    for floor in (twofour.prune, twofour.serve, twofour.bench):
        for source in sorted(Path(str(floor.__file__)).resolve().parent.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
