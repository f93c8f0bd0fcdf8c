"""Dry runs: an experiment with its full settings on tiny random weights, to count what it costs before it is paid for.

What a command would download is replaced by stand-ins in a temporary folder, `stand_ins` for checkpoints, LoRAs and
Diamond Maps, and `rewards` for rewards. The command then takes its usual way, draws a few prompts, and `counting` tells
what the whole of it costs.
"""
