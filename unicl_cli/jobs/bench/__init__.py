"""`unicl bench`: one module per kind of benchmark, and the measuring protocol that all of them share."""
