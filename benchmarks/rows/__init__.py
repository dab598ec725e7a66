"""Rows of the performance tables, by what they are about; see ``benchmarks.measure``."""
