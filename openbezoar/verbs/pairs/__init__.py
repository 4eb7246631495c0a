"""The verb ``pairs``: preference pairs of answers, by a reward model, a judge, or who wrote them."""
