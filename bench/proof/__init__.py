"""What proves the load client right, and the statistics.

In comes a script of how a server behaves; out comes what it sent, and when. Read `mock`, then its process:
`mock_server`, `answer` (one stream, as bytes) and `batching` (a server whose capacity is known); `simulation` is
that server without any time passing. `truth` is the client against the mock, `defects` what servers, machines and
clients do wrong, and `selftest` both on this machine.
"""
