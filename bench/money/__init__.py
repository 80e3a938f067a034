"""From a machine and its throughput to dollars: `cost`, with the prices of prices.yaml, their sources and dates."""
