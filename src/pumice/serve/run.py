"""From the command line's arguments to a running server."""

from __future__ import annotations

import math
import signal
from argparse import Namespace
from functools import partial

import torch

import pumice
from pumice.engine.engine import Engine
from pumice.engine.settings import LOOKUP, Settings
from pumice.serve.answers import Served
from pumice.serve.app import Service, make_app
from pumice.serve.keys import Keys
from pumice.serve.log import Log, take_over
from pumice.serve.server import Server, listen, serve
from pumice.serve.settings import MIB, Remote, ServeSettings
from pumice.types import PumiceError

ROOM = 256
"""Tokens that a question and its answer have beside one view."""


def check_room(name: str, engine: Engine, least: int) -> None:
    """Refuse a memory that can't hold ``least`` tokens: every picture would be refused later.

    Raises:
        PumiceError: it can't.
    """
    budget, mib = engine.stats().tokens_budget, engine.settings.memory_mib
    if budget < least:
        raise PumiceError(
            f"{name}: --memory {mib:g} holds {budget} tokens, and a small picture with its question and answer takes "
            f"{least}: raise it to {math.ceil(mib * least / max(budget, 1))} or more"
        )


def run(models: dict[str, str], args: Namespace, keys: Keys, hosts: frozenset[str]) -> None:
    """Open the models (names to folders), listen, and serve until a signal.

    Raises:
        PumiceError: a model can't be opened, or the address is taken.
    """
    listening = listen(args.host, args.port)  # first, since a taken port shows in a moment and a model takes longer
    if args.threads:
        torch.set_num_threads(args.threads)
    remote = frozenset(args.remote_host)
    settings = ServeSettings(
        max_body=args.max_body * MIB,
        max_bodies=max(256, 4 * args.max_body) * MIB,
        deadline=args.deadline,
        drain=args.drain,
        workers=args.workers,
        share_cache=args.share_cache,
        hosts=hosts,
        remote=Remote(args.allow_remote or bool(remote), remote),
    )
    lookup = (LOOKUP if args.reader else 0) if args.lookup is None else args.lookup
    engine = Settings(memory_mib=args.memory, batch=args.batch, queue=args.queue, weights=args.weights, lookup=lookup)
    served = {}
    for name, folder in models.items():
        assistant = pumice.load(folder, reader=args.reader)
        served[name] = Served.of(name, assistant, Engine(assistant.model, assistant.processor, engine))
        check_room(name, served[name].engine, assistant.processor.policy.side**2 + ROOM)
    log = Log()
    take_over(log)
    admission = make_app(Service(served, settings), keys, log)
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has stopped: that isn't a failure
    said = partial(log.write, "listening", url=url, models=list(served))
    serve(Server(admission, settings, args.host, args.port, said), listening)
