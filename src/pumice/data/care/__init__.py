"""Care for data: near-duplicates, contamination by test sets, balance, personal data."""
