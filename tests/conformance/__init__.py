"""The official OCI conformance suite against a running registry."""
