"""The equations of implicit methods, for rows that step on their own: Newton's iteration and its linear systems."""
