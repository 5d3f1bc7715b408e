"""Making a corpus: the work on one shard, which needs no other."""
