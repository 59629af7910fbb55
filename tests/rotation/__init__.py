"""Log files beside the real logrotate."""
