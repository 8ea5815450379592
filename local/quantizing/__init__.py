"""From an adapter or a model to verified GGUF files: merge, convert and quantise in one pass."""
