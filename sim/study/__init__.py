"""Questions asked of a scenario: projection, training run with failures, Monte Carlo, sweeps."""
