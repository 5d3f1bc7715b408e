"""Exact tiled sums over pairs, and the kernels that compute them."""
