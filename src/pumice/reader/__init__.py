"""Reader-assisted answers: an OCR engine's lines enter the prompt beside the visual tokens."""
