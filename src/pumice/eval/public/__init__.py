"""Public benchmarks through lmms-eval: which there are, running them, and the figures of papers beside a run's."""
