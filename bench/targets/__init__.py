"""Who is asked.

In come a model and CPUs, an address, or the name of a shape; out come a server that is ready, or a model folder. Read
`servers` (started, pinned to CPUs, stopped), `running` (that run already) and `frozen` (at rest while others are
measured), then `shapes` and `random_model` (models of known shapes with random weights).
"""
