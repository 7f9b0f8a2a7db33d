"""The loop over the steps of a stochastic differential equation."""
