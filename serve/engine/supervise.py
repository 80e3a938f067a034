"""Keep an engine running: end it when it hangs, start it again when it has ended, give up when that does not help.

The pause before a start doubles with each death of the last hour, so that an engine that dies at once does not keep the
machine busy. After too many deaths the server ends with an error, and its supervisor has to act.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import NoReturn

from twofour.prune.errors import ServerError
from twofour.serve.engine.types import Engine, EngineInfo

LOOK_EVERY_S = 0.5

log = logging.getLogger("twofour.engine")


@dataclass(frozen=True)
class Patience:
    """How long to wait for an engine, and how often to start it again."""

    hang_s: float = 300.0  # of silence that no long step explains: then the engine hangs
    pause_s: float = 1.0  # before the first start after a death
    longest_pause_s: float = 60.0
    deaths: int = 5  # within the window: the last is final
    window_s: float = 3600.0


DEFAULT = Patience()


async def keep_running(
    engine: Engine,
    announce: Callable[[EngineInfo], None],
    patience: Patience = DEFAULT,
    clock: Callable[[], float] = monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> NoReturn:
    """Start the engine, announce it, and start it again after every death.

    Raises ServerError if the first start fails, or after too many deaths.

    `sleep` is for the pauses between two lives; the heartbeat is looked at in real time.
    """
    begun_at = clock()
    await engine.start()
    load_limit_s = max(patience.hang_s, 3 * (clock() - begun_at))
    announce(engine.info)
    died_at: deque[float] = deque(maxlen=patience.deaths)
    why = await end_of_life(engine, patience.hang_s)
    while True:
        died_at.append(clock())
        if len(died_at) == patience.deaths and died_at[-1] - died_at[0] < patience.window_s:
            raise ServerError(given_up(why, patience))
        pause_s = pause(died_at, patience)
        log.error("%s; it is started again in %g s", why, pause_s)
        await sleep(pause_s)
        why = await one_more_life(engine, patience.hang_s, load_limit_s)


def pause(died_at: deque[float], patience: Patience) -> float:
    """Seconds to wait after the last of these deaths."""
    recent = sum(died_at[-1] - at < patience.window_s for at in died_at)
    return min(patience.pause_s * 2.0 ** (recent - 1), patience.longest_pause_s)


def given_up(why: str, patience: Patience) -> str:
    return (
        f"{why}, death {patience.deaths} within {patience.window_s:g} s: it is not started again; "
        "see the log for the reason, then start the server again"
    )


async def one_more_life(engine: Engine, hang_s: float, load_limit_s: float) -> str:
    """Start it again and return how it ended."""
    try:
        async with asyncio.timeout(load_limit_s):
            await engine.start()
    except TimeoutError:
        return f"the engine did not load within {load_limit_s:g} s"
    except ServerError as error:
        return f"the engine could not be started ({error})"
    log.warning("the engine runs again")
    return await end_of_life(engine, hang_s)


async def end_of_life(engine: Engine, hang_s: float) -> str:
    """Return how the engine process ended; end it where it hangs."""
    death, was_late = asyncio.ensure_future(engine.death()), False
    try:
        while not (await asyncio.wait((death,), timeout=LOOK_EVERY_S))[0]:
            late = (age_s := engine.heartbeat_age_s) > hang_s and age_s > engine.step_limit_s
            # Late at two looks: when all processes were stopped, this one may look before it has read its pipe.
            if late and was_late:
                log.error("the engine has said nothing for %.0f s; it is killed", age_s)
                engine.kill()
            was_late = late
        return death.result()
    finally:
        death.cancel()
