"""The planner page: controls on the left, one answer on the right; in Voila and in a browser with nothing installed."""
