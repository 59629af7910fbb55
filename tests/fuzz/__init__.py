"""Fuzzers: bytes that nobody thought of, with a seed that brings them back."""
