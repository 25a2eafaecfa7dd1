"""Connecting to Ray or starting it, and what fits on it."""
