"""Units, documents, ranges: what every room uses and nothing of the subject."""
