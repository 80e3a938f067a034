"""Runs of two presets, as `bench pruning` writes them."""

from typing import Any

FIGURES: dict[str, Any] = {
    "calibration": "self",
    "samples": 64,
    "seed": 0,
    "values": "model",
    "minutes": 1.5,
    "peak_memory_bytes": 3 << 30,
    "perplexity_error": 1.0,
    "dense_perplexity": 20.0,
    "kl_nats": 0.5,
    "agreement": 0.6,
    "overfit_nats": None,
}
FAST = FIGURES | {"preset": "fast", "perplexity": 80.0}
BEST = FIGURES | {"preset": "best", "perplexity": 40.0}
