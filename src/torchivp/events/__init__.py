"""What stops a solve: where it happens, and how that depends on everything."""
