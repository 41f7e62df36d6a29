"""Models in formats that other runtimes read."""
