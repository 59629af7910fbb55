"""What runs beside the requests, and what the operator runs in its place."""
