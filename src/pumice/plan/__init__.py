"""What a picture costs before any weight is loaded: tokens, parameters, FLOPs, bytes and predicted time.

name, config.json, recipe.toml ──find──> Model ──costs──> Costs ──predict──> Times ──> table · JSON · drawing
"""
