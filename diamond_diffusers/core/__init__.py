"""The mathematics that every method stands on; imports torch alone."""
