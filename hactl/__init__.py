"""hactl: the daemon, the recovery controller and the command line."""

__version__ = "0.1.0"
