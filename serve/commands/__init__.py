"""The verbs of this floor: `serve` with its flags (`arguments`), and `eval`."""
