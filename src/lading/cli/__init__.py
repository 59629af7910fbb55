"""The command line: one family of commands per file."""
