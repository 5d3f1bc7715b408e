"""The built-in towers."""
