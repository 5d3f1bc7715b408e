"""From images and texts to a corpus, and from a corpus to batches."""
