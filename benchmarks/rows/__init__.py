"""Rows of the performance tables, by what they are about; see ``benchmarks.measure``."""

from benchmarks.plain import stand_in

stand_in()  # before anything of the project's is imported
