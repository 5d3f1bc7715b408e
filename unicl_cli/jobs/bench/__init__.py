"""What `unicl bench` measures: one module a kind, and the protocol that all of them share."""
