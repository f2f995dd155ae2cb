"""The course around the notebooks: lessons' helpers, exercises and their checks, the book."""
