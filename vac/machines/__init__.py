"""A logical machine on disk: its directory, its slot, its features, and the files that it writes."""
