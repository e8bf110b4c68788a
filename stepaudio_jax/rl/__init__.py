"""Reinforcement learning: rewards, advantages, losses, rollouts, and the trainer (R1 §4, R1.5 §3.3)."""
