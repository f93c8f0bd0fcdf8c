"""Diamond Maps: networks that are distilled, or read from files."""
