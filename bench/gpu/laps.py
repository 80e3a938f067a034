"""Seconds of something that is done several times, by the device's own clock where it is a GPU."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Lap(NamedTuple):
    """`host_s`: until the call returned, which on a GPU is when all was launched; `device_s`: until all was done."""

    host_s: float
    device_s: float


def seconds(call: Callable[[], object], times: int, on_gpu: bool) -> list[float]:
    return [lap.device_s for lap in laps(call, times, on_gpu)]


def laps(call: Callable[[], object], times: int, on_gpu: bool) -> list[Lap]:
    """Each of so many calls, after one that is not counted."""
    call()
    return [_gpu_lap(call) if on_gpu else _cpu_lap(call) for _ in range(times)]


def _cpu_lap(call: Callable[[], object]) -> Lap:
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    return Lap(took, took)


def _gpu_lap(call: Callable[[], object]) -> Lap:
    """The device is idle before: what it does begins with the call."""
    torch.cuda.synchronize()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began = time.perf_counter()
    start.record()
    call()
    stop.record()
    host_s = time.perf_counter() - began
    stop.synchronize()
    return Lap(host_s, start.elapsed_time(stop) / 1e3)
