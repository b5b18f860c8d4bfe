"""Reinforcement-learning algorithms for gotr1."""
