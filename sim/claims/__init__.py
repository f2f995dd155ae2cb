"""Claims about GLM-5, each with the computation or the source that confirms or contradicts it."""
