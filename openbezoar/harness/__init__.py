"""LM-Eval tasks on the forest scorer: official prompts and metrics, rows from local files.

``columns`` turns plain rows into the columns that lm-eval's definitions expect, ``tasks``
opens benchmarks, ``forest_lm`` is the model that lm-eval talks to, ``run`` scores. Only
``forest_lm`` imports torch and lm-eval when it is imported.
"""
