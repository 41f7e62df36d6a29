"""Recordings in folders and tables, and YAML files. No module imports torch, so commands start quickly."""
