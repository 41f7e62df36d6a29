"""Lock folders, write files atomically, and replace only the files of this package. No module imports torch."""
