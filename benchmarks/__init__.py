"""Measures how aiopqr compares with the pools that people would choose instead: ``python -m benchmarks``."""
