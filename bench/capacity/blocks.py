"""The blocks of a simulated cache, without what is in them: by keys where they can be found again, else by number.

The policy is that of `serve.engine.blocks`: a block is free, cached (it holds a published prefix that nobody uses, and
is evicted oldest first), or in use. A key is a number here, and stands for a prefix up to the end of a block. The first
keys of a sequence, its `shared` ones, may be those of others at the same time, and so their users are counted; all
further keys are its own, and known by their number alone.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Cache:
    """All blocks of one replica."""

    def __init__(self, count: int) -> None:
        self.count = self.fewest = count  # fewest: that were ever available
        self._free = count
        self._cached: OrderedDict[int, None] = OrderedDict()  # in order of release
        self._users: dict[int, int] = {}  # of shared keys that are in use

    @property
    def available(self) -> int:
        return self._free + len(self._cached)

    def has(self, key: int) -> bool:
        return key in self._cached or key in self._users

    def known(self, keys: Sequence[int]) -> int:
        """How many of these, from the first on, are published."""
        return next((i for i, key in enumerate(keys) if not self.has(key)), len(keys))

    def use(self, keys: Sequence[int], shared: int) -> None:
        """Take published blocks into use; the first `shared` of them may be in use already."""
        for key in keys:
            self._cached.pop(key, None)
        for key in keys[:shared]:
            self._users[key] = self._users.get(key, 0) + 1

    def take(self, count: int) -> None:
        """Use so many blocks alone; the caller has looked at `available`."""
        for _ in range(count - self._free):
            self._cached.popitem(last=False)
        self._free = max(0, self._free - count)
        self.fewest = min(self.fewest, self.available)

    def publish_shared(self, key: int) -> bool:
        """Let others find a block that is in use. False: they find another with the same content."""
        if self.has(key):
            return False
        self._users[key] = 1
        return True

    def release(self, keys: Sequence[int | None], shared: int, others: int) -> None:
        """Stop using the blocks of `keys`, from the last to the first, and so many that are not published.

        None: a block whose content is published as another's.
        """
        self._free += others + keys.count(None)
        for key in reversed(keys[shared:]):
            if key is not None:
                self._cached[key] = None
        for key in reversed(keys[:shared]):
            if key is None:
                continue
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._cached[key] = None
