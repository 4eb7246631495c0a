"""The verbs ``mt_bench`` and ``agreement``: a judge grades answers, and earns its number first."""
