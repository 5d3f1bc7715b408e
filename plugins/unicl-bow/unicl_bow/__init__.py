"""Bag-of-words prediction: an image predicts the words of its text, whatever their order."""
