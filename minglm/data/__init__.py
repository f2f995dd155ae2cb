"""From text to batches: corpus, tokenizer, shards, chat, synthetic facts."""
