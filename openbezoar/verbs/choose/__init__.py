"""The verb ``choose``: the best of several steps that trained."""
