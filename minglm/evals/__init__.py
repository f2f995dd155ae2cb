"""Evaluation: needles, pass@k, indexer recall, quantisation, statistics."""
