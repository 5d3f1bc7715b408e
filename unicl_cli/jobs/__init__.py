"""The work of the commands: recipe or arguments in, a directory or a table out."""
