"""Figures of images: their rewards, their diversity, and means with intervals."""
