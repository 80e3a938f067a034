"""Reports for people.

Of a comparison: in comes its document; out come a table, a page and JSON. Read `forms` (the report in its forms),
`rows` (what is in its table), `terminal`, `html`, `charts`, `views` (other loads), `arms` (what the arms are called).
Of several arms: `offers` (what each loses and costs), `scatter` (the picture of that), `several_terminal` and
`several_html`. Of one run: `run_html`; of a sweep: `sweep_html`; of a plan: `plan_rows` and `plan_html`. `figure` and
`timeline` are what pages share. The tables of other kinds stand where their documents are made: `load.table`,
`sweep.table`, `capacity.table`, `kernels.table`, `gpu.table`, `pruning.presets`, `engine`, `decode.table` and
`vllm.table`.
"""
