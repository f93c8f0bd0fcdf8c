"""Plain and aligned images side by side, and the comparison of methods at equal cost."""
