"""The shipped cores and daemon in a simulated cluster: one thread, virtual time, one seed. See docs/simulation.md."""
