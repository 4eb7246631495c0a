"""Data looked at before, and while, it is trained on."""
