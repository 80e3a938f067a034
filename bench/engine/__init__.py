"""Our own engine and our own HTTP layer, each timed alone.

In comes a model folder; out come times of steps, or requests per second. Read `step` (a decode step without its
linears), `turn` (what is around the model), then `http_layer` with the engine process that computes nothing:
`scripted_engine`, which `scripted_server` serves.
"""
