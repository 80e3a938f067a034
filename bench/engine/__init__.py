"""Our own engine, timed by its parts.

In comes a model folder; out come times of steps, and rates. Read `step` (a decode step without its linears), then
`http_layer` (what the HTTP layer alone sustains), with the engine process that computes nothing: `scripted_engine`,
which `scripted_server` serves.
"""
