"""The job of `unicl compare`: models measured on the same rows, their paired differences, and their recipes."""
