"""Care for the folders that commands write: locks, ownership of files, atomic writes. No module imports torch."""
