"""One file per command: its options, its help, the call of its job."""
