"""Distillation of Posterior Diamond Maps."""
