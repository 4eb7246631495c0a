"""The verb ``release``: models and data, ready to publish."""
