"""What has arrived, on the disk once there is much of it: an hour of tokens as they came would fill the memory.

Until `KEPT_BYTES` have come nothing is written. From then on an exchange hands over what it holds when that is a
`BLOCK`, and at its end; the file has no name, so that nothing is left of it, and lies where `TMPDIR` says. Where the
disk takes no more, the rest stays in memory.

Of a block there are, one after another: the times as doubles, the lengths as unsigned integers, the bytes.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import IO

KEPT_BYTES = 16 << 20
BLOCK = 256  # reads
_WRITE_BYTES = 1 << 20

Read = tuple[float, bytes]


class Block:
    """Reads that were handed over."""

    __slots__ = ("_spool", "_start", "reads")

    def __init__(self, spool: "Spool", start: int, reads: int) -> None:
        self._spool = spool
        self._start = start
        self.reads = reads

    def __iter__(self) -> Iterator[Read]:
        at, lengths = array("d"), array("I")
        at.frombytes(self._spool.read(self._start, self.reads * at.itemsize))
        lengths.frombytes(self._spool.read(self._start + self.reads * at.itemsize, self.reads * lengths.itemsize))
        begins = self._start + self.reads * (at.itemsize + lengths.itemsize)
        body = self._spool.read(begins, sum(lengths))
        for moment, (start, end) in zip(at, pairwise(accumulate(lengths, initial=0)), strict=True):
            yield moment, body[start:end]


class Spool:
    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._left = kept_bytes
        self._file: IO[bytes] | None = None
        self._written = 0
        self._pending = bytearray()  # what comes after it
        self._takes = True

    def put(self, reads: Sequence[Read]) -> Block | None:
        """Take them over; None: keep them."""
        if self._left > 0:
            fresh = len(reads) % BLOCK or BLOCK  # those before were counted
            self._left -= sum(len(body) for _, body in reads[-fresh:])
            return None
        if not self._takes:
            return None
        block = Block(self, self._written + len(self._pending), len(reads))
        self._pending += array("d", [at for at, _ in reads]).tobytes()
        self._pending += array("I", [len(body) for _, body in reads]).tobytes()
        self._pending += b"".join([body for _, body in reads])
        if len(self._pending) >= _WRITE_BYTES:
            self._write()
        return block

    def read(self, start: int, length: int) -> bytes:
        if start >= self._written or self._file is None:
            return bytes(self._pending[start - self._written : start - self._written + length])
        return os.pread(self._file.fileno(), length, start)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _write(self) -> None:
        at, pending = 0, memoryview(self._pending)
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - see close
            while at < len(pending):
                at += os.pwrite(self._file.fileno(), pending[at:], self._written + at)
        except OSError:
            self._takes = False
            return
        self._written += len(self._pending)
        self._pending = bytearray()
