"""One short session on a GPU: everything that can only be learnt there, in stages, in under nine minutes.

In comes nothing but the device: weights are random and made on it, nothing is downloaded, nothing of this package needs
to be installed. Out comes one file of rows for each stage. Read `day` (what is measured, and by when), `sheet` (how a
row is kept), then the stages in their order: `device`, `compiling`, `tests`, `products`, `sweep`, `steps`, `graphs`,
`checks`; `laps` and `models` are what they share. `python -m twofour.bench.gpu` starts the stages one after the other,
each in a process of its own (`stage`), and `table` prints a file. Not yet run on a GPU: on a CPU all of it is rehearsed
with small sizes and stand-ins.
"""
