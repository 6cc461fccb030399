"""``pumice plan`` and ``pumice export``: what a checkpoint costs, and the forms that it can have."""

from __future__ import annotations

import argparse
from pathlib import Path

from pumice.cli.parser import Parser, make_parser, positive
from pumice.types import PumiceError

FORMS = ("hf", "original", "pumice", "gguf")
PRECISIONS = ("f32", "f16", "bf16", "q8_0")


def plan_parser(name: str) -> Parser:
    from pumice.plan.run import size

    parser = make_parser(
        name,
        "Say what a picture costs before any weight is loaded: tokens, parameters, FLOPs, memory, predicted time.",
        """
pumice plan onevision-7b elva-7b --image 1344x896 --device h100
pumice plan llava-video-7b --video 64 --device a100
pumice plan path/to/checkpoint --image 640x480 --png plan.png""",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a name such as onevision-7b, a folder, or a recipe")
    parser.add_argument("--image", type=size, metavar="WxH", help="width and height of a picture in pixels")
    parser.add_argument("--video", type=positive, default=0, metavar="N", help="sampled frames of a video")
    parser.add_argument(
        "--device", metavar="NAME", help="predict times for this device (default: measure this machine)"
    )
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the tiles and their tokens")
    return parser


def plan_command(args: argparse.Namespace) -> int:
    from pumice.plan import run

    run.main(args.models, args.image, args.video, args.device, args.json, args.png)
    return 0


def export_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Write a model in another form. Nothing is written over.",
        """
pumice export path/to/llava-onevision-qwen2-0.5b-ov-hf --to original --out path/to/new
pumice export path/to/llava-v1.6-vicuna-7b --to hf --out path/to/new
pumice export path/to/adapter --base path/to/llava-1.5-7b-hf --merge --to hf --out path/to/new
pumice export path/to/llava-v1.5-7b --tower path/to/clip --to gguf --precision q8_0 --out path/to/new
pumice export runs/mine --to pumice --out path/to/new""",
    )
    parser.add_argument("source", metavar="MODEL", help="a checkpoint's folder; for --to pumice any model")
    parser.add_argument(
        "--to", required=True, choices=FORMS, help="hf: llava-hf's · original: LLaVA's own · gguf: llama.cpp's · pumice"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--tower", metavar="FOLDER", type=Path, help="the tower, for checkpoints that leave it out")
    parser.add_argument("--base", metavar="FOLDER", type=Path, help="what an adapter or a connector alone belongs to")
    parser.add_argument("--merge", action="store_true", help="fold an adapter into its base")
    parser.add_argument("--template", metavar="NAME", help="the chat format, instead of the model's own")
    parser.add_argument("--precision", choices=PRECISIONS, help="of gguf (default: f16)")
    return parser


def export_command(args: argparse.Namespace) -> int:
    if args.precision and args.to != "gguf":
        raise PumiceError("--precision is for --to gguf; the other forms keep what the files have")
    source = Path(args.source).expanduser()
    from pumice.formats.adapters import is_partial

    if is_partial(source) and not args.merge:
        raise PumiceError(f"{source}: an adapter or a connector alone; --merge folds it into its base")
    if args.base and args.to != "pumice" and not is_partial(source):  # a run may have one
        raise PumiceError(f"{source}: a whole model; --base is for an adapter or a connector alone")
    if args.to == "pumice":
        _export_own(args)
    elif args.to == "gguf":
        from pumice.formats.export_gguf import export_gguf

        if is_partial(source):
            raise PumiceError(f"{source}: write it with --to hf --merge first, and that folder with --to gguf")
        export_gguf(source, args.out, args.tower, args.precision or "f16", args.template)
    else:
        from pumice.formats.export import export

        export(source, args.out, args.to, args.tower, args.template, args.base)
    print(args.out)
    return 0


def _export_own(args: argparse.Namespace) -> None:
    """Open the model in the dtype of its files (a run's and pocket's weights are fp32) and write it whole."""
    import pumice
    from pumice.formats.own import save_own
    from pumice.formats.shards import stored_dtype

    folder = args.base or Path(args.source).expanduser()
    dtype = stored_dtype(folder) if (folder / "config.json").is_file() else "float32"
    tower, base = (str(path) if path else None for path in (args.tower, args.base))
    save_own(pumice.load(args.source, dtype, "cpu", tower, args.template, base), args.out)
