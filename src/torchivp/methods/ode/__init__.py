"""Methods for ordinary differential equations, one file each."""
