"""The machine that a run is on.

It answers which processors may be used (`processors`) and whether others keep them busy (`contention`), how much memory
is free (`available`) or allowed (`control_groups`), and what a result was made on (`provenance`); it sets how freed
memory is used again (`heap`) and how exactly matrices are multiplied (`precision`).
"""
