"""Solves of a fit: rows of trajectories with the tangents of their states."""
