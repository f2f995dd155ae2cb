"""Inputs as people bring them, each with its right value: `index.yaml` lists them, one test reads them all."""
