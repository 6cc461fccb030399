"""Checkpoints of the line in every published form: recognised by content, opened, and written again."""
