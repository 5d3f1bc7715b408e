"""The job `export`: a model in the layout of open_clip, ready for the hub."""
