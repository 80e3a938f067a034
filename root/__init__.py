"""Prune language models to 2:4 semi-structured sparsity, serve them, and measure what that bought.

The floors are `prune`, `serve` and `bench`. Above them are `cli`, the command `twofour`, and `huge_pages`, which it
asks Linux for.
"""

__version__ = "0.1.0"
