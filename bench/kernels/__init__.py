"""Micro-benchmarks of the 2:4 kernels, by matrix and number of tokens, against the machine's ceiling and against dense.

In comes a grid; out comes a document of cells. Read `grid`, `contenders` (who multiplies), `ceiling` (what the memory
allows), `race` (in turns, with cold caches), `measure` (the story), `cuda` and `isa`, then `document`, `never_slower`
and `table`.
"""
