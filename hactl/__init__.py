"""hactl."""
