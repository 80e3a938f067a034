"""When a closed connection is cut whose last bytes nobody takes. The clock and the buffer are the test's."""

from collections.abc import Callable, Iterable
from typing import Any

from twofour.serve.connections import LOOK_S, UNREAD_S, TimelyProtocol


class Transport:
    """What is left to write, look by look."""

    def __init__(self, left: Iterable[int], closing: bool) -> None:
        self._left, self._closing, self.aborted = iter(left), closing, False

    def get_write_buffer_size(self) -> int:
        return next(self._left)

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self

    def setsockopt(self, *option: Any) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Clock:
    """A loop that makes the next call at once, and sets its time to when that was due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        def due() -> None:
            self.now += delay_s
            call(*arguments)

        self.calls.append(due)

    def run(self, transport: Transport) -> float:
        """Until nothing is due or the buffer has no more to tell; the seconds that passed."""
        while self.calls and not transport.aborted:
            try:
                self.calls.pop()()
            except StopIteration:
                break
        return self.now


def looked_at(left: list[int], closing: bool) -> tuple[bool, float]:
    """Whether and when a connection is cut that has so many bytes left at each look."""
    protocol: Any = TimelyProtocol.__new__(TimelyProtocol)
    protocol.transport, protocol.loop = Transport(left, closing), Clock()
    protocol._look(left[0], 0.0)
    seconds = protocol.loop.run(protocol.transport)
    return protocol.transport.aborted, seconds


LOOKS = int(UNREAD_S / LOOK_S)


def test_nobody_takes_the_last_bytes() -> None:
    assert looked_at([100] * 2 * LOOKS, closing=True) == (True, UNREAD_S)


def test_somebody_takes_one_now_and_then() -> None:
    slow = [left for left in range(10, 0, -1) for _ in range(LOOKS)]
    assert looked_at(slow, closing=True)[0] is False
    assert looked_at(slow + [1] * LOOKS, closing=True) == (True, UNREAD_S * 10)


def test_an_open_connection_is_left_to_its_request() -> None:
    assert looked_at([100] * 3 * LOOKS, closing=False)[0] is False
