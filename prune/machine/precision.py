"""How exactly float32 matrices are multiplied."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the caller allows: TF32 and bfloat16 are too coarse for a Hessian."""
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision
