"""Engines that write the shards of a corpus."""
