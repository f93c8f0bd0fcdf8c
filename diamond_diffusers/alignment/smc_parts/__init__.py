"""Parts of sequential Monte Carlo, each by name."""
