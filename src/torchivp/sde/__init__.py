"""Stochastic differential equations as users state them, and as methods see them."""
