"""Files and what guards them: whole or absent, read with bounds, on disks and object stores; locks, JSON, streams."""
