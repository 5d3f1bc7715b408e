"""The training path: loop, processes, sampling, checkpoints. Knows no loss and no encoder."""
