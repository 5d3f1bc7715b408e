"""What a command does: recipe or arguments in, a directory or a table out."""
