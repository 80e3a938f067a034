"""The scratch buffer of a device: one, stable for whoever captured it, never grown inside a capture."""

import threading
from collections.abc import Iterator

import pytest
import torch

from twofour.serve.kernels.triton import scratch as triton_scratch
from twofour.serve.kernels.triton.scratch import borrowed

LIKE = torch.empty(0, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_scratch, "_buffers", {})
    monkeypatch.setattr(triton_scratch, "_outgrown", [])
    yield


def address(rows: int, columns: int, like: torch.Tensor = LIKE) -> int:
    with borrowed(rows, columns, like) as dense:
        assert dense.shape == (rows, columns) and dense.dtype == like.dtype and dense.is_contiguous()
        return dense.data_ptr()


def test_every_weight_that_fits_gets_the_same_memory() -> None:
    first = address(8, 64)
    assert address(4, 64) == address(64, 8, LIKE.half()) == first


def test_an_outgrown_buffer_stays_for_the_graphs_that_saw_it() -> None:
    small = address(8, 64)
    large = address(16, 64)
    assert large != small and address(8, 64) == large
    assert [kept.data_ptr() for kept in triton_scratch._outgrown] == [small]


def test_while_a_graph_is_captured_the_buffer_is_used_but_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = address(8, 64)
    monkeypatch.setattr(triton_scratch, "_capturing", lambda device: True)
    assert address(8, 64) == kept
    with borrowed(16, 64, LIKE) as of_the_graph:
        assert of_the_graph.data_ptr() != kept
    assert address(8, 64) == kept and not triton_scratch._outgrown


def test_memory_first_used_under_inference_mode_serves_outside_of_it() -> None:
    with torch.inference_mode():
        address(2, 8)
    with borrowed(2, 8, LIKE) as dense:
        assert not dense.is_inference()


def test_one_borrower_at_a_time() -> None:
    order: list[str] = []

    def borrow() -> None:
        with borrowed(2, 8, LIKE):
            order.append("second")

    with borrowed(2, 8, LIKE):
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join(0.1)  # long enough for it to get in, if it could
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
