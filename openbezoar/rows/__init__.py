"""Rows: their forms, where they come from, how they are read and written."""
