"""The process that listens.

In come connections, out come answers within deadlines, until a signal ends it. Read `server` (its life), `listening`,
`notify` (what systemd is told of it), `acceptor`, `crowd` and `connections` (who is let in, and for how long),
`operations` (/health, /ready, /metrics, /version, /debug), `page` (the chat page at /).
"""
