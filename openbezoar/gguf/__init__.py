"""Models as GGUF files: shapes, vocabularies and weights in the form that llama.cpp reads."""
