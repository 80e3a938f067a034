"""The verbs of `twofour bench`: flags in, a table or a document out.

`bench` names them; each has a file: `run`, `compare`, `decode`, `vllm`, `kernels`, `pruning`, `overhead`, `http`,
`peers`, `report`. `service_flags` says how a server is asked, for those that ask one; `run_forms` has the flags of the
forms of a run.
"""

INVALID = 3  # the exit status of a result that failed a gate, or that is not whole
