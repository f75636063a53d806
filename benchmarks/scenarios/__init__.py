"""What is measured: each module runs one scenario and returns plain data, which :mod:`benchmarks.report` shows."""
