"""Objects and staging files, tested on a real disk."""
