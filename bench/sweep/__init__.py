"""Running servers under many loads, in turns: ladders over concurrency or rate, and the highest rate that keeps an Slo.

In come servers (`targets.running`), a `load` and paces; out come a `document` and a `table`. `ladder` climbs paces that
are given, `limit` searches (`search` is how, without any server); both make each run by `visit`.
"""
