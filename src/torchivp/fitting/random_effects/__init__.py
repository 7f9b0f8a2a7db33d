"""Quantities that differ between trajectories by chance: the marginal likelihood, and its maximum."""
