"""From a start to the maximum of the likelihood."""
