import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.serve.engine.blocks import Blocks, extend_keys

SIZE = 2


def keys_of(*tokens: int) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens, SIZE)
    return keys


def test_a_key_stands_for_everything_from_the_first_token_on() -> None:
    assert keys_of(1, 2, 3, 4)[:1] == keys_of(1, 2, 9, 9)[:1]
    assert keys_of(1, 2, 3, 4)[1] != keys_of(1, 9, 3, 4)[1]
    assert keys_of(3, 4)[0] != keys_of(1, 2, 3, 4)[1]


def test_under_another_salt_nothing_is_found() -> None:
    salted: dict[str, list[bytes]] = {salt: [] for salt in ("", "a", "b", "\ud800")}
    for salt, keys in salted.items():
        extend_keys(keys, [1, 2], SIZE, salt)  # the second block chains on
        extend_keys(keys, [1, 2, 3, 4], SIZE, salt)
    assert salted[""] == keys_of(1, 2, 3, 4)
    assert len({key for keys in salted.values() for key in keys}) == 8


def test_only_full_blocks_have_keys_and_extending_equals_starting_over() -> None:
    keys = keys_of(1, 2, 3)
    assert len(keys) == 1
    extend_keys(keys, [1, 2, 3, 4, 5], SIZE)
    assert keys == keys_of(1, 2, 3, 4)


def test_a_released_prefix_is_found_until_it_is_evicted() -> None:
    blocks, keys = Blocks(3, SIZE), keys_of(1, 2, 3, 4)
    mine = blocks.take(2)
    for block, key in zip(mine, keys, strict=True):
        blocks.publish(block, key)
    blocks.release(mine)
    assert blocks.match([*keys, b"unknown"]) == mine
    assert blocks.available == 3
    blocks.take(1)  # the block that was never used
    assert blocks.match(keys) == mine
    blocks.take(1)  # now the end of the prefix goes, its beginning stays
    assert blocks.match(keys) == mine[:1]


def test_the_least_recently_released_prefix_is_evicted_first() -> None:
    blocks = Blocks(2, SIZE)
    old, new = blocks.take(2)
    blocks.publish(old, keys_of(1, 2)[0])
    blocks.publish(new, keys_of(3, 4)[0])
    blocks.release([old])
    blocks.release([new])
    blocks.share([old])
    blocks.release([old])  # used again: now the other one is the oldest
    assert blocks.take(1) == [new]


def test_what_is_withdrawn_is_found_by_nobody_and_used_on() -> None:
    blocks, keys = Blocks(2, SIZE), keys_of(1, 2, 3, 4)
    mine = blocks.take(2)
    for block, key in zip(mine, keys, strict=True):
        blocks.publish(block, key)
    blocks.share(mine)
    blocks.withdraw(mine[1:])
    blocks.withdraw(mine[1:])
    assert blocks.match(keys) == mine[:1]
    blocks.release(mine)
    assert blocks.in_use == 2
    blocks.check()
    blocks.release(mine)
    assert blocks.take(1) == mine[1:], "nothing in it is worth keeping"


def test_a_shared_block_is_free_when_the_last_user_lets_go() -> None:
    blocks = Blocks(1, SIZE)
    block = blocks.take(1)
    blocks.publish(block[0], b"key")
    blocks.share(block)
    blocks.release(block)
    assert blocks.available == 0
    blocks.release(block)
    assert blocks.available == 1


def test_of_two_blocks_with_the_same_content_the_first_stays_published() -> None:
    blocks = Blocks(2, SIZE)
    first, second = blocks.take(2)
    blocks.publish(first, b"key")
    blocks.publish(second, b"key")
    assert blocks.match([b"key"]) == [first]
    blocks.release([second])
    blocks.check()


def test_check_notices_a_lost_block() -> None:
    blocks = Blocks(2, SIZE)
    blocks._free.pop()
    with pytest.raises(RuntimeError, match="1 of 2 cache blocks"):
        blocks.check()


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "release"]), st.integers(0, 99)), max_size=60))
def test_blocks_are_never_lost_nor_given_twice(actions: list[tuple[str, int]]) -> None:
    blocks, held = Blocks(6, SIZE), list[list[int]]()
    published = [str(i).encode() for i in range(4)]
    for action, number in actions:
        key = published[number % 4]
        if action == "take" and blocks.available:
            held.append(blocks.take(1))
            blocks.publish(held[-1][0], key)
        elif action == "share" and (hit := blocks.match([key])):
            blocks.share(hit)
            held.append(hit)
        elif action == "release" and held:
            blocks.release(held.pop(number % len(held)))
        blocks.check()
        assert blocks.in_use == len({block for taken in held for block in taken})
        assert blocks.in_use + blocks.available == 6
