"""What a user asks of a model on their own machine before they rely on it."""
