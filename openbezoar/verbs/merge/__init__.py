"""The verb ``merge``: adapters into their base."""
