"""The rules this code base keeps about itself."""
