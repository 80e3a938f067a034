"""The verbs of this floor: `serve`, whose flags are in `arguments`, and `eval`. Both have those of `rounding`."""
