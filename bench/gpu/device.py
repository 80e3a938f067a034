"""The device itself: who it is, how fast it copies, how fast it multiplies. The ceilings of all that follows."""

from functools import partial
from typing import Any

import torch

from twofour.bench.gpu.day import Day
from twofour.bench.gpu.laps import seconds
from twofour.bench.gpu.sheet import Sheet

COPY_BYTES, SIDE = 1 << 32, 8192  # of a copy, and of the square matrices of the peak
SMALL_COPY_BYTES, SMALL_SIDE = 1 << 20, 128
TIMES = 10


def run(day: Day, sheet: Sheet) -> None:
    sheet.cell({"what": "device"}, partial(_traits, day))
    sheet.cell({"what": "copy"}, partial(_copy, day))
    for dtype in ("bfloat16", "float16"):
        sheet.cell({"what": f"matrix product, {dtype}"}, partial(_product, day, dtype))


def _traits(day: Day) -> dict[str, Any]:
    if not day.on_gpu:
        return {"name": day.device}
    traits = torch.cuda.get_device_properties(0)
    return {
        "name": traits.name,
        "capability": [traits.major, traits.minor],
        "processors": traits.multi_processor_count,
        "cache_bytes": traits.L2_cache_size,
        "memory_bytes": traits.total_memory,
        "cusparselt": torch.backends.cusparselt.version(),
        "cudnn": torch.backends.cudnn.version(),
    }


def _copy(day: Day) -> dict[str, float]:
    """Bytes read and written."""
    nbytes = COPY_BYTES if day.on_gpu else SMALL_COPY_BYTES
    source = torch.ones(nbytes, dtype=torch.uint8, device=day.device)
    to = torch.empty_like(source)
    return {"bytes_per_s": 2 * nbytes / min(seconds(lambda: to.copy_(source), TIMES, day.on_gpu))}


def _product(day: Day, dtype: str) -> dict[str, float]:
    side = SIDE if day.on_gpu else SMALL_SIDE
    x, y = (torch.randn(side, side, device=day.device).to(getattr(torch, dtype)) for _ in range(2))
    return {"flop_per_s": 2 * side**3 / min(seconds(lambda: x @ y, TIMES, day.on_gpu))}
