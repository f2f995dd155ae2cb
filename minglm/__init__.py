"""minglm: a small GLM-5, built to be read. Importing this package never imports torch."""
__version__ = "0.1.0"
