"""The registry API under /v2/: a table of routes, and one file of handlers for each noun."""
