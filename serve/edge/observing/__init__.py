"""What is known of every request when it ends: `observe` tells whoever watches of each `exchange`: the access log,
`http_metrics`, and `tracing` (OTLP, under the caller's `traceparent`)."""
