"""Alignment methods: ways to make samples obey a reward."""
