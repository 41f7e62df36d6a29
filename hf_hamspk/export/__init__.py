"""Writes models in formats of other runtimes."""
