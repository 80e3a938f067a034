"""From a machine and its throughput to dollars: `cost`, with the prices of prices.yaml, their sources and dates.

`attribution` splits the cost by the time that prompts and answers took, `payback` says when a pruning is paid back.
"""
