"""Models of the real classes with random weights, for the benchmarks and the tests.

The file of a family builds a tiny pipeline, text encoders included, which has the same weights at every call and draws
an image in milliseconds. `published` has the architectures in their published sizes, and shrunken, to measure what a
step costs.
"""
