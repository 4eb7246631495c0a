"""Judge prompts, parsers of judges' replies, quality rules, scores and their statistics.

Importing this needs neither torch nor numpy; ``statistics`` and ``scores`` need numpy.
"""

from openbezoar.judging.parsers import parse_filter_reply, parse_rating, parse_verdict

__all__ = ["parse_filter_reply", "parse_rating", "parse_verdict"]
