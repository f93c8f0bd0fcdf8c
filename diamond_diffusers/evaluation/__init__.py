"""Compares alignment methods at equal cost, and what they draw side by side."""
