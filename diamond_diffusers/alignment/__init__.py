"""Alignment methods: ways to make samples obey a reward."""

AUTO = "auto"
"""The `alignment` of a call whose method the table of `automatic` chooses."""
