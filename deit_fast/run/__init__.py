"""The run folder: configuration, metrics, checkpoints and report of one training, on disk."""
