"""A run on a TPU that is not here: memory, time, dollars."""
