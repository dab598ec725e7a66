"""Measurements behind choices of implementation; run one as ``python -m benchmarks.NAME``."""
