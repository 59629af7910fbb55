"""Real clients against a running registry, and what each is expected to be able to do."""
