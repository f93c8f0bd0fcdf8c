"""Models of the real classes with random weights: tiny ones that draw in milliseconds, and those of published sizes."""
