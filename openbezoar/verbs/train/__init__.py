"""The verbs ``sft`` and ``dpo``: training of adapters."""
