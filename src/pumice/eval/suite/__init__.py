"""The embedded suite: its questions, asking them, scoring the answers, and an OCR pipeline beside a model."""
