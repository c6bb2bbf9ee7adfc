"""Flags, help, and what each command does."""
