"""The embedded default: a small captioned world, its renderer, its judge, and a genuine tiny FLUX trained on it."""
