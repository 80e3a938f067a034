"""The report of a comparison, for people.

In comes its document; out come a table, a page and JSON. Read `forms` (the report in its forms), `rows` (what is in its
table), `terminal`, `html`, `charts`, `arms` (what the arms are called). The tables of other kinds stand where their
documents are made: `load.table`, `kernels.table`, `gpu.table`, `comparison.peers`, `pruning.presets`, `engine`,
`decode.table`, `vllm.table`.
"""
