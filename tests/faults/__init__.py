"""Faults on purpose: the server is killed and watched; what it has acknowledged must stand."""
