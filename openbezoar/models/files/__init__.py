"""What a model folder, a GGUF file or an adapter holds, read without loading it."""
