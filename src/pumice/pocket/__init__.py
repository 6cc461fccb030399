"""The embedded default model: parts.py says where its pretrained parts come from, model.py opens it."""
