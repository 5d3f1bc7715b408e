"""Evaluators: named metrics from a finished model and one split of a corpus."""
