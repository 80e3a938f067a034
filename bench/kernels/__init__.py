"""Micro-benchmarks of the 2:4 kernels, by matrix and number of tokens, against the machine's ceiling and against dense.

In comes a grid of matrices and numbers of tokens; out comes a document of its cells. Read `grid`, `contenders` (who
multiplies), `ceiling` (what the memory allows), `race` (in turns, with cold caches), `measure` (the story), `cuda` and
`isa`, then `document`, `never_slower` and `table`.
"""
