"""Readers of lists: a file becomes records, and a record with roles for its columns becomes a line."""
