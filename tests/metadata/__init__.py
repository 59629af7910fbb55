"""The database, tested on real files: rows, plans, groups and what a change leaves behind."""
