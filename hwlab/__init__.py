"""hwlab."""
