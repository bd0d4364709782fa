"""Where runs are mirrored while they work."""
