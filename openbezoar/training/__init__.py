"""Quantised loading, adapters, the loop, losses, checkpoints."""
