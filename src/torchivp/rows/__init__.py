"""Rows of a batch that step on their own, and events on the way."""
