"""Models of the real classes with random weights, for the benchmarks and the tests.

A file a family builds a tiny pipeline, text encoders included, whose weights are the same at every call and which draws
an image in milliseconds; `published` has the architectures in their published sizes, and shrunken, to measure what a step
costs.
"""
