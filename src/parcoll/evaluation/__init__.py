"""Evaluation: from a chain to its results, over any engine. Runs in the user's process."""
