"""Reinforcement learning from verifiable rewards: rollouts and trainer as processes, in five modes of overlap."""
