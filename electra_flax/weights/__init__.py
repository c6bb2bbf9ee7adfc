"""Formats and names of weights, what a run begins with, and what is published."""
