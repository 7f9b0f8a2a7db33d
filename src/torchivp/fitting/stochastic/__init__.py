"""Stochastic models fitted by the likelihood of their innovations: the extended Kalman filter."""
