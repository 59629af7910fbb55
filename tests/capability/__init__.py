"""A running registry, watched from outside: one file for each capability."""
