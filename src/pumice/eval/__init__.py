"""Evaluation: metrics, and the embedded held-out table of rendered pictures."""
