"""Vision-language models of transformers as judges: loading, asking, and the probabilities of answers."""
