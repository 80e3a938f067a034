"""Stop strings, found wherever they fall across tokens.

As many characters as the longest stop string has, less one, are held back: they may be its beginning. The
earliest end wins; of several with the same end, the first in the list.
"""

from collections.abc import Sequence


class StopMatcher:
    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._hold = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""

    def feed(self, text: str, armed: bool = True) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string ended within this text.

        Not armed, nothing ends here; but what is said now may be the beginning of a later end.
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
        """Where the stop string begins that ends first after the characters held back."""
        earliest_end, found = len(window) + 1, None
        for stop in self._stops:
            start = window.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0 and start + len(stop) < earliest_end:
                earliest_end, found = start + len(stop), start
        return found
