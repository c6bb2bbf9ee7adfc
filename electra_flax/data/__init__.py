"""The contract with data preparation, and the input pipeline."""
