"""The model. Read in this order: model, attention, indexer, sparse_attention, moe, mtp."""
