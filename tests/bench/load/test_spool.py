"""What goes to the disk comes back as it was, in memory or not, also where the disk is full."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import client, spool
from twofour.bench.load.decode import Exchange, record
from twofour.bench.load.service import Service
from twofour.bench.load.spool import BLOCK, Block, Read, Spool
from twofour.bench.load.workload import Lengths, synthetic
from twofour.bench.proof.mock import Script, serving

READS = st.lists(st.tuples(st.floats(0, 1e9), st.binary(max_size=40)), min_size=1, max_size=9)


@given(st.lists(READS, max_size=12), st.integers(0, 60), st.sampled_from([1, 90, 1 << 20]))
def test_what_was_handed_over_comes_back(parts: list[list[Read]], kept: int, write_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_WRITE_BYTES", write_bytes)
        store, left = Spool(kept), kept
        for reads in parts:
            block = store.put(reads)
            assert (block is None) == (left > 0)
            left -= sum(len(body) for _, body in reads)
            assert block is None or (list(block) == reads and block.reads == len(reads))
        store.close()


def test_what_an_exchange_keeps_is_counted_once_as_it_grows() -> None:
    store, exchange = Spool(3 * BLOCK), Exchange(0)
    for kept in (True, True, True, False):
        exchange.reads += [(1.0, b"x")] * BLOCK
        exchange.spill(store)
        assert bool(exchange.reads) == kept
    assert exchange.pieces == exchange.spooled_reads == 4 * BLOCK
    store.close()


def test_nothing_is_copied_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_WRITE_BYTES", 50)
    written, write = list[type](), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: (written.append(type(data)), write(file, data, at))[1])
    store = Spool(0)
    store.put([(1.0, b"x" * 99)])
    store.close()
    assert written == [memoryview]


def test_blocks_are_read_in_any_order_after_all_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_WRITE_BYTES", 100)
    store, parts = Spool(0), [[(float(at), b"x" * at)] * 3 for at in range(40)]
    blocks = [store.put(reads) for reads in parts]
    assert [list(block or []) for block in reversed(blocks)] == parts[::-1]
    assert len(store._pending) < 200  # most of it is in no memory
    store.close()


def test_a_full_disk_leaves_the_rest_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_WRITE_BYTES", 50)
    store, reads = Spool(0), [(1.0, b"0123456789" * 4)]
    write, blocks = os.pwrite, [store.put(reads)]

    def full(file: int, data: bytes, at: int) -> int:
        if at % 52 == 0 and len(data) > 20:
            return write(file, data[:20], at)  # it takes some of it
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    blocks += [store.put(reads), store.put(reads)]
    assert [None if block is None else list(block) for block in blocks] == [reads, reads, None]
    store.close()


def test_an_exchange_is_decoded_alike_wherever_its_bytes_are() -> None:
    events = [
        b'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": %d}}\n\n' % (1 + at) for at in range(9)
    ]
    reads = [(float(at), event) for at, event in enumerate([*events, b"data: [DONE]\n\n"])]
    plain, moved, store = Exchange(0, status=200, reads=list(reads)), Exchange(0, status=200), Spool(0)
    for at, read in enumerate(reads):
        moved.reads.append(read)
        if at % 4 == 0:
            moved.spill(store)
    assert moved.pieces == plain.pieces == 10 and len(moved.reads) == 1
    assert record(moved) == record(plain) and record(moved).chunks.total == 9
    store.close()


def test_a_client_that_spills_says_what_one_says_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    made = Block.__init__

    def noted(block: Block, store: Spool, start: int, reads: int) -> None:
        handed.append(reads)
        made(block, store, start, reads)

    monkeypatch.setattr(Block, "__init__", noted)
    monkeypatch.setattr(client, "Spool", lambda: Spool(0))
    schedule = synthetic(4, Lengths(8), Lengths(700), 1, concurrency=2)
    with serving(Script()) as mock, client.connected(mock.url, 30) as session:
        jobs = client.jobs(Service(mock.url, "mock"), schedule.requests, "nonce")
        session.send(jobs, 2)
        assert session.seen.pieces == sum(handed) and not any(job.exchange.reads for job in jobs)
        records = session.records(jobs)
    assert [(each.error, each.chunks.total, each.output_tokens) for each in records] == [(None, 700, 700)] * 4
    assert not any(job.message or job.exchange.spooled for job in jobs)  # given up
