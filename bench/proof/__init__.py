"""What proves the load client right, and the statistics.

In comes a script of how a server behaves; out comes what it sent, and when. Read `mock`, then its process:
`mock_server`, `answer` (one stream, as bytes) and `mock_engine`, which runs `batching` (a server whose capacity is
known) or `paged` (one with a cache of pages: the truth that a plan is held against). `simulation` and `paged_fleet` are
these two without any time passing. `truth` is the client against the mock, `defects` what servers, machines and
clients do wrong, and `selftest` both on this machine. `make bench-proof` runs `proof` and prints `proof_table`: every
promise by its value, beside other load testers (`peers`), with `statistics` tried on simulated runs, the search of
`bench sweep` on a server whose `knee` is known, `bench gate` on speeds that are known (`gated`), and its `weight`.
`memory` is how much of it a long load test takes.

`make plan-proof` runs `plan_proof` and prints `plan_proof_table`: what the planner promises of itself, on servers in
real time (`plan_measured`), on `paged` without time (`plan_simulated`), and by how long it takes (`plan_timed`).
"""
