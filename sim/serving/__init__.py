"""An inference engine: memory, step times, batching, sizing."""
