"""A whole solve as one kernel, compiled for this machine."""
