"""Files on disks and object stores: atomic writes, bounded reads, locks, JSON, streams."""
