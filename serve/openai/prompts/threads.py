"""Threads for work that would hold up the event loop. Large work has one thread, and small work never waits for it.

Admission limits how much may wait. Work that its owner cancels before it has begun does not begin.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

LARGE = 1 << 15  # bytes, characters or tokens: they take a millisecond to parse, and ten to tokenise

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Threads:
    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(2, thread_name_prefix="small")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large")

    async def run(self, size: int, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """`size`: of what the function reads."""
        pool = self._large if size > LARGE else self._small
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def run_if_large(self, size: int, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """For quick work: done here and now, unless it is large."""
        return await self.run(size, function, *arguments) if size > LARGE else function(*arguments)
