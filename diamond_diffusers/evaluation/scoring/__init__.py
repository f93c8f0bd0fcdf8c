"""Figures of images: their rewards, how far apart they are, and means with intervals."""
