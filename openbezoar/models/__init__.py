"""Models: where they lie, how they come into memory, for training and inference."""
