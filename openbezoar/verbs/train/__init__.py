"""The verbs ``sft``, ``dpo`` and ``kto``: training of adapters."""
