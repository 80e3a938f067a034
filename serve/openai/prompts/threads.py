"""Where work goes that would hold up the event loop. Large work has one thread, and small work never waits for it.

How much may wait is bounded by admission. What its owner gives up before it is begun is not begun.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

LARGE = 1 << 15  # bytes, characters or tokens: what takes a millisecond to parse, and ten to tokenise

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Threads:
    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(2, thread_name_prefix="small")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large")

    async def run(self, size: int, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """`size`: of what the function goes through."""
        pool = self._large if size > LARGE else self._small
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def run_if_large(self, size: int, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """For what is quick: done at once unless it is large."""
        return await self.run(size, function, *arguments) if size > LARGE else function(*arguments)
