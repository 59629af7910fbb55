"""Everything that proves Lading."""
