"""The built-in losses: pure functions of features and keys, and the modules that call them."""
