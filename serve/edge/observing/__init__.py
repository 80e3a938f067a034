"""What is known of every request when it ends.

In come requests and answers, out go an access log, metrics and traces. Read `observe` (ends every `exchange` with a
call to each watcher), then the watchers: `http_metrics`, and `tracing`, which sends a span for each request, as a child
of the caller's (`traceparent`). What a span says of the generated text's length and times is written where they are
known, in openai/answers/spans.py, and left for `tracing` in `scope["state"]["span"]`.
"""
