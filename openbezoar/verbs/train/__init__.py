"""The verbs ``sft``, ``dpo`` and ``kto``: training of adapters, or of all weights."""
