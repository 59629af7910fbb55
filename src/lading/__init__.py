"""Lading, an OCI container registry an operator can trust."""
