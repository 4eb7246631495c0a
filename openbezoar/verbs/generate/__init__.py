"""The verb ``generate``: synthetic instruction rows by one scheme."""
