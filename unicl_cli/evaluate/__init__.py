"""Scores: zero-shot, retrieval, probe."""
