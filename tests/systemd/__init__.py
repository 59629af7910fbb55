"""Under a real systemd, which boots in namespaces of its own: `make systemd`."""
