"""vLLM offline, dense against 2:4: decode steps, whole answers and prompts, in turns within one run.

In come model folders that vLLM loads, one by its own dense path and others by ours; out come milliseconds and tokens
per second by number of requests and length of prompt, as ratios. Run it with the Python that has vLLM. Read `child`
(vLLM in a process of its own), `measure` (the turns), `others` (whether the machine was quiet), `document` and `table`.
"""
