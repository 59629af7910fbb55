"""What the registry remembers. Each table is written by exactly one file; functions are synchronous, over one connection."""
