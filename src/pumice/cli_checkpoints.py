"""``pumice plan`` and ``pumice export``: what a checkpoint costs, and the forms that it can have."""

from __future__ import annotations

import argparse
from pathlib import Path

from pumice.cli_parser import Parser, make_parser, positive


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
        "Write a checkpoint of the line in another published form. Nothing is written over.",
        """
pumice export path/to/llava-onevision-qwen2-0.5b-ov-hf --to original --out path/to/new
pumice export path/to/llava-v1.6-mistral-7b-hf --to hf --out path/to/again""",
    )
    parser.add_argument("source", metavar="FOLDER", type=Path, help="the checkpoint")
    parser.add_argument("--to", required=True, choices=("hf", "original"), help="the form to write")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--tower", metavar="FOLDER", type=Path, help="the tower, for checkpoints that leave it out")
    return parser


def export_command(args: argparse.Namespace) -> int:
    from pumice.formats.export import export

    export(args.source, args.out, args.to, args.tower)
    print(args.out)
    return 0
