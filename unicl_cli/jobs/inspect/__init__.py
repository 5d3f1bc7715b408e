"""`unicl inspect`: facts, tables and pages of a corpus, a batch, a checkpoint or a run."""
