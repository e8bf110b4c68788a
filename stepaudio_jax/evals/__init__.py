"""Evaluation: items in, a table of means with their intervals out."""

from stepaudio_jax.evals.evaluate import Item, Result, Score, evaluate

__all__ = ["Item", "Result", "Score", "evaluate"]
