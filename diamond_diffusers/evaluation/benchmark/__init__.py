"""The comparison of methods at equal cost: its plan, its runs, its records, and its report."""
