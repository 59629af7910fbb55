"""What the registry remembers. Each table is written by one file; functions are synchronous, over a connection."""
