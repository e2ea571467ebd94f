"""Bulk scoring on many machines: the input is cut into shards, and workers write a part of the output for each.

`guardrail.cluster.engine.score` runs it with Ray. Nothing here is imported before it is asked for.
"""
