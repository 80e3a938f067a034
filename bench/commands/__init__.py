"""The verbs of `twofour bench`, and the verbs `plan` and `plan_validate`: flags in, a table or a document out.

`bench` names them; each has a file: `run`, `sweep`, `compare`, `gate`, `decode`, `vllm`, `kernels`, `pruning`,
`overhead`, `http`, `selftest`, `profile`, `report`. `service_flags` says how a server is asked, for those that ask one,
`schedule_flags` what it is asked; `run_forms` has the flags of the forms of a run, `run_repeated` is `run --repeat`.
"""

INVALID = 3  # the exit status of a result that failed a gate, or that is not whole
SLO_HELP = "what is promised, such as ttft_p95=500ms,tpot_p95=50ms,e2e=2s: goodput, and whether it was kept"
