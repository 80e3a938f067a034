"""A pruning run, from what is asked to a published folder.

In come a dense model and a `PruneConfig`; out comes a folder that is whole, or a journal from which the same command
goes on. `prune` tells the story, `frontier` that of several results. Then read `prepare` and `request` (what is checked
before), `footprint`, `shortage` and `plan` (the memory and time that it takes), `calibrate` (one decoder block at a
time), `solvers` (what a config means for one weight), `mixture` and `choose` (which linear is stored how, and which is
best), `journal` (what is kept for the case that it is cut off), `report` (what is written and said at the end).
"""
