"""Which plan is best: the search over plans and the questions asked of it."""
