"""A run from submit to pull: its record, its machine followed to the end, what comes home, and the run again."""
