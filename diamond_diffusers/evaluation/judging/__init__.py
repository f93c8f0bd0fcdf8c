"""Judges finished images of folders and runs by suites and rewards, and compares sets of images."""
