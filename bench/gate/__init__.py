"""Is the new one slower than the base? Documents of `run`, `sweep` or `compare`, before and after a change.

`evidence` reads the runs of a document by their places, `judge` compares them place by place, `table` says what came of
it. A regression is one that chance does not explain.
"""
