"""How well posterior samplers draw look-aheads: `python -m benchmarks.posteriors --help`."""
