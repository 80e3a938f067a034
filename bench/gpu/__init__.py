"""One short session on a GPU: everything that can only be learnt there, in stages, in under nine minutes.

In: nothing but the device. Weights are random and made on it, nothing is downloaded, nothing of this package needs to
be installed. Out: one file of rows for each stage. Read `day` for what is measured and when it has to be over, `sheet`
for how a row is kept, then the stages in their order: `device`, `compiling`, `products`, `sweep`, `steps`, `graphs`,
`checks`; `tests/gpu/run.py` starts them one after the other, each in a process of its own, and runs the tests between.
`table` prints a file. Not yet run on a GPU: on a CPU all of it is rehearsed with small sizes and stand-ins.
"""
