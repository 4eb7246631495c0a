"""What a release consists of beside the weights: GGUF, Ollama's Modelfile, data sets, checksums, uploads."""
