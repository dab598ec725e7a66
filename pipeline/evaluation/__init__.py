"""Metrics and statistics of finished runs."""
