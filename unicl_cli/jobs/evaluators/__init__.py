"""Evaluators: named figures from a finished model and one split of a corpus."""
