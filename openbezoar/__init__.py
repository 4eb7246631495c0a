"""OpenBezoar: from an open base model to a preference-aligned chat model, with numbers that can be believed."""

__version__ = "0.1.0"
