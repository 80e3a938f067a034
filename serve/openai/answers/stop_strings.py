"""Stop strings, found wherever they fall across tokens.

One character less than the longest stop string has is held back: it may be the beginning of one. The stop string
that ends first wins; of several with the same end, the first in the list.
"""

from collections.abc import Sequence


class StopMatcher:
    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._hold = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""

    def feed(self, text: str, armed: bool = True) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string ended within this text.

        Unless `armed` none ends here; but one that ends later may begin here.
        """
        window = self._held + text
        start = self._find(window) if armed else None
        if start is not None:
            self._held = ""
            return window[:start], True
        shown = max(0, len(window) - self._hold)
        self._held = window[shown:]
        return window[:shown], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _find(self, window: str) -> int | None:
        """The start of the stop string that ends first, after the characters held back."""
        earliest_end, found = len(window) + 1, None
        for stop in self._stops:
            start = window.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0 and start + len(stop) < earliest_end:
                earliest_end, found = start + len(stop), start
        return found
