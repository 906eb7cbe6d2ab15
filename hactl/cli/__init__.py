"""hactl/cli."""
