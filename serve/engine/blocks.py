"""Which cache blocks belong to which sequences, and which prefixes can be used again. Knows no tensors.

A block holds the keys and values of `size` consecutive tokens. It is always in exactly one of three places:

    free     nobody uses it and nothing in it is worth keeping
    cached   nobody uses it, but it holds a published prefix: it is found by its key, or evicted, oldest first
    in use   by one sequence, or by several that share a prefix

A key is the SHA-256 of a block's tokens and of the key before it; the first follows a hash of the sequence's salt. So a
key stands for the salt and for all tokens from the first on: two different prefixes have different keys, and a request
cannot find, or learn whether there is, what was computed under another salt.
"""

from array import array
from collections.abc import Sequence
from hashlib import sha256


def extend_keys(keys: list[bytes], tokens: Sequence[int], size: int, salt: str = "") -> None:
    """Append to `keys` those of the further blocks that `tokens` fill."""
    for begin in range(len(keys) * size, len(tokens) - size + 1, size):
        parent = keys[-1] if keys else sha256(salt.encode("utf-8", "surrogatepass")).digest()
        keys.append(sha256(parent + array("q", tokens[begin : begin + size]).tobytes()).digest())


class Blocks:
    """All blocks of one cache."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._free = list(range(count - 1, -1, -1))  # the last freed is the first used: it is warm
        self._cached: dict[int, None] = {}  # in order of release
        self._users: dict[int, int] = {}  # block -> number of sequences
        self._by_key: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        return len(self._free) + len(self._cached)

    @property
    def in_use(self) -> int:
        return len(self._users)

    def needed(self, tokens: int) -> int:
        """The number of blocks that hold so many tokens."""
        return -(-tokens // self.size)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Find the blocks of the longest published prefix. They are not taken."""
        found: list[int] = []
        for key in keys:
            if (block := self._by_key.get(key)) is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Use matched blocks, together with the sequences that use them already."""
        for block in blocks:
            self._cached.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def take(self, count: int) -> list[int]:
        """Use `count` blocks alone; the caller has looked at `available`."""
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        self._users.update(dict.fromkeys(taken, 1))
        return taken

    def publish(self, block: int, key: bytes) -> None:
        """Let others find a filled block. Of two with the same content the first stays published."""
        if key not in self._by_key and block not in self._key_of:
            self._by_key[key], self._key_of[block] = block, key

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Let no further sequence find these blocks: their content is not to be trusted."""
        for block in blocks:
            if key := self._key_of.pop(block, None):
                del self._by_key[key]

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using blocks. The end of a prefix goes first, so that it is evicted before its beginning."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._key_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def check(self) -> None:
        """Raise RuntimeError unless every block is in exactly one place and every key leads to its block."""
        places = [*self._free, *self._cached, *self._users]
        if sorted(places) != list(range(self.count)):
            raise RuntimeError(
                f"{len(set(places))} of {self.count} cache blocks are accounted for, {len(places)} entries"
            )
        if {block: key for key, block in self._by_key.items()} != self._key_of or min(
            self._users.values(), default=1
        ) < 1:
            raise RuntimeError("the keys or user counts of the cache blocks contradict each other")

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        del self._by_key[self._key_of.pop(block)]
        return block
