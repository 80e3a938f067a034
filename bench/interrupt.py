"""SIGTERM and a closed terminal end a measurement as Ctrl-C does: servers are stopped, what was measured is kept."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Ending:
    number: int = signal.SIGINT  # the signal that came

    @property
    def status(self) -> int:
        """The exit status of what a signal has cut off."""
        return 128 + self.number


@contextmanager
def in_order() -> Iterator[Ending]:
    """For the length of a `with` block such signals raise KeyboardInterrupt, which ends an event loop, too."""
    ending = Ending()

    def stop(number: int, frame: object) -> None:
        ending.number = number
        if not callable(signal.getsignal(signal.SIGINT)):  # ignored, as it is in a shell's background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield ending
    except KeyboardInterrupt:
        raise SystemExit(ending.status) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status_of(done: int, rounds: int, ending: Ending) -> int:
    """The exit status after so many of the rounds; says so, where a signal came before all were done."""
    if done == rounds:
        return 0
    print(f"interrupted after {done} of {rounds} rounds, which is all that is shown: run it again", file=sys.stderr)
    return ending.status
