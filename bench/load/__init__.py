"""One server under one load.

In come an address and a load; out come the records of every request and the quantities made of them. Read `run` (the
story), `workload` and `arrivals` (what is sent, and when), `client`, `connection`, `wire` and `decode` (how, with
times), `records`, `metrics` (the definitions), `steadiness` and `gates` (whether a run counts), `endpoint` (what a
server says of itself), then `table` and `vllm_json`.
"""
