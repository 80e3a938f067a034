"""Presets of pruning compared by quality and minutes.

In come a dense model, a text and presets; out come a document of runs, its table and its charts. Read `presets` (the
story), then `charts`.
"""
