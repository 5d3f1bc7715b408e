"""Recipe to objects."""
