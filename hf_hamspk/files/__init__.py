"""Recordings in folders and tables, and YAML files. This room does not import torch, so commands can use it at once."""
