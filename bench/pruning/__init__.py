"""Presets compared by quality and minutes: `presets`."""
