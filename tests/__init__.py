"""Tests of minglm and sim, in the same rooms; see docs/architecture.md."""
