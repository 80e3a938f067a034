"""The verbs of this floor: flags in, a summary out. Each has a file: `prune`, `check`, `convert`, `demo_model`."""
