"""Stochastic differential equations: what the user writes, and the loop that solves it."""
