"""The verbs of this floor, one file each: flags in, a summary out."""
