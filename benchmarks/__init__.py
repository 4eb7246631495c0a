"""Benchmarks against the tools that people use today. Run as ``python -m benchmarks.NAME``.

``sft`` and ``dpo`` against TRL's trainers and a plain PEFT loop, ``score`` against lm-eval's own
model; ``full_size`` measures the paper's size and ``data`` the reading of rows; ``page`` turns
their JSON into docs/benchmarks.md. The peers come with the ``bench`` extra and are imported by
worker processes here only, never by the package.
"""
