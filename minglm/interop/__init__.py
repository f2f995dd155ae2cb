"""The model in other formats and frameworks: Hugging Face, compressed-tensors, MindSpore."""
