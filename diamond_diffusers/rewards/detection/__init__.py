"""Detectors of objects, and the rules on what they find, for rewards and for the suites that score by them."""
