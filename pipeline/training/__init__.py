"""Phases and the loop that trains them."""
