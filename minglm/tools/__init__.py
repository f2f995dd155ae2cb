"""Programs over the whole: demo, bench, fault injection."""
