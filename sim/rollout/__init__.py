"""Reinforcement learning's rollouts on many engines: lengths, engines, modes, metrics."""
