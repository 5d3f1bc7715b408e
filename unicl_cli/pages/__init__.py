"""Results as HTML pages and as aligned text."""
