"""Micro-benchmarks of the 2:4 kernels: by matrix and number of tokens, against the ceiling and against dense."""
