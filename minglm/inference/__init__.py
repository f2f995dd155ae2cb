"""From prompt to text: prefill, decoding, sampling, speculative decoding, the continuous-batching engine."""
