"""A load generator for OpenAI-compatible servers, with the metrics and names of vLLM's serving benchmark.

`workload` makes the requests, `client` sends one and notes when each token came, `load` sends them all at their times,
`metrics` turns the records into numbers and `plot` draws them. It needs nothing but the standard library and numpy.
"""
