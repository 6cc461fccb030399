"""FLOPs of training: both passes of a batch, or of all samples of a plan.

lengths of documents, views, supervised tokens ── + sizes, Stage ──> FLOPs
"""

from __future__ import annotations

import numpy as np

from pumice.config import Stage
from pumice.formats.sizes import Model
from pumice.plan.costs import connector_flops, decode_flops, tower_flops
from pumice.types import Batch


def training_flops(stage: Stage, model: Model, lengths: np.ndarray, views: int, supervised: int) -> float:
    """FLOPs of forward and backward passes of an answer stage over samples of ``lengths`` (D,) tokens each.

    A pass back costs one forward's work for the gradient of what came in, where something before it trains, and one
    for its own weights, where they train; recomputed activations cost one more forward through the blocks.
    """
    head = 2.0 * model.lm.vocab * model.lm.hidden
    first = float(decode_flops(model.lm, 1)) - head
    attended = float(decode_flops(model.lm, 2) - decode_flops(model.lm, 1))
    tokens = lengths.astype(np.float64)
    blocks = (tokens * first + attended * tokens * (tokens - 1) / 2).sum()
    below = bool(stage.lr.get("tower") or stage.lr.get("connector"))
    on = bool(stage.lr.get("lm"))
    weights = on and stage.lora is None
    times = 1 + (below or on) + weights + stage.gradient_checkpointing
    return seeing_flops(stage, model, views) + blocks * times + supervised * head * (2 + weights)


def seeing_flops(stage: Stage, model: Model, views: int) -> float:
    """FLOPs of both passes of ``views`` views through tower and connector."""
    tower = float(tower_flops(model.tower, model.tower.used)) * (1 + 2 * bool(stage.lr.get("tower")))
    trained = bool(stage.lr.get("connector")) + bool(stage.lr.get("tower"))
    return views * (tower + model.policy.side**2 * float(connector_flops(model)) * (1 + trained))


def batch_flops(model: Model, stage: Stage, batch: Batch, first: int = 0) -> float:
    """FLOPs of both passes of a batch, by the stage's objective; ``first`` is the block at which reading is taught.

    Documents without a question don't pass the language model.
    """
    lengths = batch.starts.diff().cpu().numpy()[batch.asked]
    views, visual = (sum(getattr(placed, name) for placed in batch.layouts) for name in ("views", "tokens"))
    return objective_flops(model, stage, lengths, views, visual, batch.supervised, first)


def objective_flops(
    model: Model, stage: Stage, lengths: np.ndarray, views: int, visual: int, supervised: int, first: int = 0
) -> float:
    """FLOPs of both passes by the stage's objective: of documents of ``lengths`` tokens that have a question, of
    ``views`` views, and of ``visual`` tokens; ``first`` is the block at which reading is taught.
    """
    if stage.objective == "read":
        share = first / model.tower.used if first else 1.0
        return seeing_flops(stage, model, views) * share
    if stage.objective == "align":
        table = 2.0 * model.lm.vocab * model.lm.hidden * visual
        return seeing_flops(stage, model, views) + 2 * table
    return training_flops(stage, model, lengths, views, supervised)
