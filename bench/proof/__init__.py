"""What proves the load client right.

In comes a script of how a server behaves; out comes what it sent, and when. Read `mock`, then its process:
`mock_server`, `answer` (one stream, as bytes) and `batching` (a server whose capacity is known).
"""
