"""`unicl inspect`: what is in a corpus, a batch, a checkpoint or a run, as facts, tables and a page."""
