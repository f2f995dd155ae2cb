"""A training step and a training run as events: schedules, program, step, failures, checkpoints."""
