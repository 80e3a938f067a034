"""The end of memory, in spite of the estimate, said with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from twofour.prune.errors import InputError

NO_MEMORY = "can't allocate memory"  # what torch's allocator says of the host


@contextmanager
def shortage_named() -> Iterator[None]:
    """Raise InputError, which says what to do, where memory ends in spite of the estimate."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has an error class for the memory of a GPU, none for the host
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and NO_MEMORY not in str(error):
            raise
        said = str(error)
        reason = said[max(0, said.find(NO_MEMORY)) :].partition(". ")[0] or "out of memory"
        raise InputError(
            f"memory ended ({reason}); free some and run again, or train less at a time with --train blocks"
        ) from error
