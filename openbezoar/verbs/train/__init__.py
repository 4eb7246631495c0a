"""The verbs ``sft``, ``dpo``, ``kto`` and ``reward``: training of adapters, or of all weights, and of reward models."""
