"""Running a finished model over many things."""
