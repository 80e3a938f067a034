"""What proves the load client right: `mock` is a server that logs when it sent what."""
