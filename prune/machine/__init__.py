"""The machine under a run: what memory is free or allowed (`available`, `control_groups`), how freed memory is used
again (`heap`), and what a result says it was made on (`provenance`)."""
