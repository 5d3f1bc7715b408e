"""Caption prediction: an image is described word by word, and scored by its captions."""
