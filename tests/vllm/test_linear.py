"""What the log says of a linear."""

import logging

import pytest
import torch

from twofour.prune.format.packed import pack
from twofour.serve.kernels import select


def test_the_log_says_once_which_kernel_multiplies_by_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from twofour.serve.vllm_plugin import linear

    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    monkeypatch.setattr(linear.log, "handlers", [handler])
    monkeypatch.setattr(linear.log, "level", logging.INFO)
    linear.log.info_once.__globals__["_print_info_once"].cache_clear()
    packed = pack(torch.tensor([[1.0, 0, 0, 2] * 4] * 8), "w")
    for _ in range(2):
        linear.say(packed, select.choose(packed, "reference"))
    assert lines == ["2:4 linears (8, 16) float32: reference"]
    linear.say(packed, select.Choice(select.choose(packed, "reference").kernel, select.SLOWER))
    assert lines[1] == f"2:4 linears (8, 16) float32: reference ({select.SLOWER})"
