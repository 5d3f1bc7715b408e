"""A finished model run over many images, texts and classes."""
