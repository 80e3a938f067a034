"""What is known of every request when it ends.

In come requests and answers, out go an access log, metrics and traces. Read `observe` (writes the log, and calls every
watcher with the `exchange` that has ended), then the watchers: `http_metrics`, and `tracing`, which sends a span for
each request, as a child of the caller's (`traceparent`). How long the generated text was and took, only openai/ knows:
openai/answers/spans.py says it, and `tracing` finds it in `scope["state"]["span"]`. The metrics of the engine are in
openai/engine_metrics.py.
"""
