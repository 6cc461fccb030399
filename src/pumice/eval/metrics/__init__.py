"""Scores of answers: strings, trees, yes or no, the public benchmarks' rules, and intervals. Pure Python."""
