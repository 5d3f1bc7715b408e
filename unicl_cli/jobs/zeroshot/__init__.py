"""Answering `unicl zeroshot`."""
