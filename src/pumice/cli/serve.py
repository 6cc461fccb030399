"""``pumice serve``: models behind an OpenAI-compatible API, and the page."""

from __future__ import annotations

import argparse
import ipaddress
import re
from pathlib import Path

from pumice.cli.parser import Parser, add_reader, make_parser, positive
from pumice.types import PumiceError

WEIGHTS = ("fp32", "bf16", "int8", "int4")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def serve_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Serve models over an OpenAI-compatible API, and a page to try them on. Needs pumice[serve].",
        """
pumice serve
pumice serve pocket runs/mine --port 9000
pumice serve pocket --reader
pumice serve mine=runs/mine/model theirs=path/to/checkpoint
pumice serve --new-key team-a --api-keys keys.toml
pumice serve pocket --host 0.0.0.0 --api-keys keys.toml""",
    )
    parser.add_argument(
        "models", nargs="*", default=["pocket"], metavar="MODEL", help="a model's name or folder, or NAME=FOLDER"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=positive, default=8000, metavar="N", help="port (default: %(default)s)")
    add_reader(parser)
    _add_trust(parser)
    _add_cost(parser)
    return parser


def _add_trust(parser: Parser) -> None:
    trust = parser.add_argument_group("trust")
    trust.add_argument("--api-keys", type=Path, metavar="FILE", help="hashes and limits of the keys that may ask")
    trust.add_argument("--new-key", metavar="NAME", help="make a key, append its hash to --api-keys, print it and exit")
    trust.add_argument("--open", action="store_true", help="let anybody who reaches --host ask, without a key")
    trust.add_argument("--allowed-host", action="append", type=host_name, default=[], metavar="NAME",
                       help="a name under which this server may be asked; may be repeated")  # fmt: skip
    trust.add_argument("--share-cache", action="store_true", help="let different keys share what is cached")
    trust.add_argument("--allow-remote", action="store_true", help="fetch http(s) pictures from public addresses")
    trust.add_argument("--remote-host", action="append", type=host_name, default=[], metavar="HOST",
                       help="fetch http(s) pictures from this host only; may be repeated")  # fmt: skip


def _add_cost(parser: Parser) -> None:
    cost = parser.add_argument_group("cost")
    cost.add_argument("--weights", choices=WEIGHTS, default="",
                      help="of the language model (default: its own); int4 rounds the tower's too")  # fmt: skip
    cost.add_argument("--lookup", type=int, metavar="N",
                      help="guess up to N tokens at once from what has been said; no answer changes by it (default: 8 "
                      "with --reader, where it pays, else 0)")  # fmt: skip
    cost.add_argument("--threads", type=positive, metavar="N", help="of the model (default: torch's own choice)")
    cost.add_argument("--memory", type=positive, default=2048, metavar="MIB",
                      help="for keys and values, a model (default: %(default)s)")  # fmt: skip
    cost.add_argument("--batch", type=positive, default=32, metavar="N", help="answers at once (default: %(default)s)")
    cost.add_argument("--queue", type=positive, default=256, metavar="N", help="that may wait (default: %(default)s)")
    cost.add_argument(
        "--max-body", type=positive, default=32, metavar="MIB", help="of a request (default: %(default)s)"
    )
    cost.add_argument("--deadline", type=positive, default=300, metavar="SECONDS",
                      help="for a whole answer (default: %(default)s)")  # fmt: skip
    cost.add_argument("--drain", type=positive, default=30, metavar="SECONDS",
                      help="for running answers after SIGTERM (default: %(default)s)")  # fmt: skip
    cost.add_argument("--workers", type=positive, default=2, metavar="N",
                      help="processes that open files (default: %(default)s)")  # fmt: skip


def serve_command(args: argparse.Namespace) -> int:
    try:
        from pumice.serve import keys, run
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise PumiceError(f"serving needs {error.name}: pip install 'pumice[serve]'") from None
        raise
    if args.new_key is not None:
        if args.api_keys is None:
            raise PumiceError("--new-key needs --api-keys FILE, where its hash goes")
        print(keys.new_key(args.api_keys, args.new_key))
        return 0
    local = is_loopback(args.host)
    if not (local or args.api_keys or args.open):
        raise PumiceError(
            f"--host {args.host} can be reached by others: make a key (--new-key NAME --api-keys FILE) and pass "
            "--api-keys FILE, or let anybody ask with --open"
        )
    found = keys.read_keys(args.api_keys) if args.api_keys else keys.Keys([])
    names = frozenset(args.allowed_host)
    # Without a key, a page of another site could ask through the browser of whoever sits here.
    hosts = names | LOOPBACK | {args.host} if names or (local and not args.api_keys) else frozenset()
    run.run(named(args.models), args, found, hosts)
    return 0


def host_name(text: str) -> str:
    """A name or an IP address, for argparse: with a scheme, port or path no request would ever match it."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise argparse.ArgumentTypeError(f"expected a name or address alone, such as example.com, not {text!r}")
    return text.lower().rstrip(".")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def named(models: list[str]) -> dict[str, str]:
    """Folders (or "pocket") by the names that clients call them.

    Raises:
        PumiceError: two have one name.
    """
    found: dict[str, str] = {}
    for model in models:
        given = re.fullmatch(r"([A-Za-z0-9._-]+)=(.+)", model)
        name, folder = (given[1], given[2]) if given else (Path(model).name or model, model)
        if name in found:
            raise PumiceError(f"two models are called {name!r}; tell them apart with NAME=FOLDER")
        found[name] = folder
    return found
