"""The processes of a command: joined if a launcher started them, started here otherwise."""
