"""The job `export-corpus`: a corpus in the layouts of other tools."""
