"""Making a corpus: what it will hold, decided before an image is written."""
