"""Measurements of the package, and the training of its embedded models; no part of what is installed."""
