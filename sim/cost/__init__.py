"""What an operator, a layer, a message, a step takes, and what it costs in memory and money."""
