"""Public data sets from a local copy: what they should hold, and their forms turned into what training reads."""
