"""Data source: the stamps of Tux Paint, images with captions and spoken names in many languages."""
