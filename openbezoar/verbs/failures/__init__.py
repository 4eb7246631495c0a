"""The verb ``failures``: what checkpoints get wrong."""
