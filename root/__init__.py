"""Prune language models to 2:4 semi-structured sparsity, serve them, and measure what that bought."""

__version__ = "0.1.0"
