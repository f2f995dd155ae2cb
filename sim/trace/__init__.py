"""Timelines in and out: Perfetto, Chakra, replay."""
