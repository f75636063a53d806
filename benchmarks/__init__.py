"""How fast aiopqr is beside the pools that people would pick instead: ``python -m benchmarks``."""
