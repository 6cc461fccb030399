"""What the language model is given for a picture: sizes of the visual tokens, and the word nearest to each.

    python benchmarks/visual_tokens.py [--model pocket] demo/pictures/form.png ...

Visual tokens should be about as long as word embeddings and differ from place to place. A mean vector nearly as long as
the tokens themselves means that the language model's norm makes them look alike.
"""

from __future__ import annotations

import argparse

import torch

import pumice
from pumice.assistant import question_messages, to_sample
from pumice.data.batch import pack
from pumice.encode import encode


def main() -> None:
    """Print the figures of each picture, and its map of nearest words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", default="pocket")
    options = parser.parse_args()
    assistant = pumice.load(options.model, dtype="float32")
    model, tokenizer = assistant.model, assistant.processor.tokenizer
    table = model.lm.get_input_embeddings().weight
    print(f"word embeddings: mean length {table.norm(dim=1).mean():.2f}")
    for picture in options.pictures:
        batch = pack([encode(to_sample(question_messages(picture, "?")), assistant.processor)])
        with torch.inference_mode():
            tokens = model.visual(model.tower(batch.tiles), batch.layouts)
            nearest = (tokens @ table.T).argmax(-1).tolist()
        placed = batch.layouts[0]
        mean = tokens.mean(0)
        print(f"{picture}: {len(tokens)} visual tokens, mean length {tokens.norm(dim=1).mean():.2f}, ", end="")
        print(f"length of their mean {mean.norm():.2f}, spread around it {(tokens - mean).norm(dim=1).mean():.2f}")
        row = placed.map[1] + placed.newline
        for start in range(placed.side**2 if placed.overview else 0, len(nearest), row):
            words = [tokenizer.decode([token]) for token in nearest[start : start + placed.map[1]]]
            print("   ", " | ".join(f"{word!r:>10}" for word in words))


if __name__ == "__main__":
    main()
