"""An OpenAI-compatible server over the engine, and the page. Needs the extra ``pumice[serve]``."""
