"""Every field of a run and of a model: meaning, type, default, range."""
