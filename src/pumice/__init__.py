"""Pumice: efficient visual assistants of the LLaVA line."""
