"""The verb ``filter``: the good rows are kept."""
