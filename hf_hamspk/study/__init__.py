"""Compare training heads in a study: the same search budget for each head, then paired seeds, then one report."""
