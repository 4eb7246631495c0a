"""A room a verb, or for several that share work. The table of verbs is in ``recipe/verbs.py``.

A room holds the work, what it costs, what it measured, what its key is made of, its section of the report.

``work(settings, context)`` does the work in ``context.out`` and gives the numbers of the manifest. A room
imports no other room.
"""
