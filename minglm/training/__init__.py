"""The training loop and what it needs: recipe, optimiser, checkpoint, metrics, memory."""
