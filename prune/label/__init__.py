"""What a pruned folder says of itself, and whether it is true.

In comes what a run did and what an evaluation measured; out come twofour.json, the model card and report.html. Read
`manifest` (the facts), `quality` (what was lost), `publish` (all of it written), then `card`, `mixture`, `report`,
`pages` and `charts` (the same for people). `check` compares a folder with its label (`described` takes it apart,
`contradictions` finds what does not agree); `convert` changes its form, label included; `foreign` gives a folder that
another tool made 2:4 its first label.
"""
