"""The training of the embedded models: `python -m benchmarks.miniature.train --help`."""
