"""What the project costs, measured; run as ``python -m benchmarks.NAME``."""
