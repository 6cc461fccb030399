"""What the shipped form of a run's weights loses: teacher-forced figures on held-out pages, trained against shipped.

    python benchmarks/shipped_weights.py runs/pocket [--pages 48]

The trained model is the run's newest checkpoint in fp32. The shipped one is rebuilt from the pretrained parts and the
packed delta (int8 tower difference, 16-bit connector and low-rank pairs) as `pumice.load` does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from pumice.config import load_recipe
from pumice.data.feed import RenderedFeed
from pumice.model.build import build_processor
from pumice.model.weights import apply_delta
from pumice.train.checkpoint import checkpoints, load_training_state
from pumice.train.loop import Run, batches_of
from pumice.train.lowrank import add_lora
from pumice.train.metrics import Meter
from pumice.train.objectives import answer
from pumice.train.parallel import World
from pumice.train.product import export_delta
from pumice.train.run import make_learner


def main() -> None:
    """Print loss, accuracy and bytes of both forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pages", type=int, default=48)
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.toml")
    stage = next(stage for stage in recipe.stages if stage.objective == "answer")
    trained, shipped = make_learner(recipe, recipe.seed), make_learner(recipe, recipe.seed)
    if stage.lora:
        add_lora(trained.model.lm, stage.lora, recipe.seed)
    newest = checkpoints(options.run / "checkpoints")[-1]
    load_training_state(newest, trained)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "delta.safetensors"
        export_delta(recipe, trained, path, stage.name)
        apply_delta(shipped.model, path)
        size = path.stat().st_size
    print(f"checkpoint {newest.name}; shipped form {size / 2**20:.1f} MiB; {options.pages} held-out pages")
    processor = build_processor(recipe.model)
    for name, learner in (("trained", trained), ("shipped", shipped)):
        feed = RenderedFeed(stage, processor, recipe.seed, "heldout")
        run = Run(learner, processor, recipe.seed, options.run, World(), lambda *_: None)
        meter = Meter()
        with torch.inference_mode():
            for batches in batches_of(run, stage, feed, range(options.pages // stage.batch)):
                for batch in batches:
                    meter.add(answer(learner, batch), [batch])
        row = meter.row()
        print(f"{name}: answer loss {row['answer_loss']}, next-token accuracy {row['answer_accuracy']}")


if __name__ == "__main__":
    main()
