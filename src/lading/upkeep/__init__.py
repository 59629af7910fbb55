"""Keeping the house: what runs beside the requests, in one process at a time."""
