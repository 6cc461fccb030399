"""A Ray cluster joined or started, its cores and GPUs shared out, and what runs in a worker's process.

    RAY_ADDRESS ──join──> ray     ray.nodes ──shares──> Share     make, Share ──spawner──> workers, one a call

The cluster is the one that RAY_ADDRESS names ("auto" is one that runs on this machine), or else one of this machine
alone that is started and ended here. Ray sends pickled Python between its processes: a cluster belongs into a network
whose machines trust each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pumice.cores import usable_cores
from pumice.types import PumiceError

Work = Callable[..., Any]


@dataclass(frozen=True)
class Share:
    """So many workers, each with so many of its machine's cores and GPUs."""

    count: int
    cores: int
    gpus: int = 0


def shares(nodes: list[dict[str, Any]], count: int | None, single: bool = False) -> Share:
    """Workers on the machines of `ray.nodes`: ``count``, or one a GPU, or else one a machine; with ``single`` each has
    one core alone, and there are as many as cores.

    Raises:
        PumiceError: there are fewer cores (or, where there are any, GPUs) than workers.
    """
    alive = [node for node in nodes if node.get("Alive")]
    cores = [int(node["Resources"].get("CPU", 0)) for node in alive]
    gpus = 0 if single else sum(int(node["Resources"].get("GPU", 0)) for node in alive)
    wanted = count or gpus or (sum(cores) if single else len([own for own in cores if own]))
    limit, what = (gpus, "GPUs") if gpus else (sum(cores), "cores")
    if not wanted or wanted > limit:
        raise PumiceError(f"Ray: {wanted or 1} workers; the cluster has {limit} {what}: choose fewer with --workers")
    if single:
        return Share(wanted, 1)
    each = next((n for n in range(max(cores), 0, -1) if sum(own // n for own in cores) >= wanted), 0)
    return Share(wanted, each, 1 if gpus else 0)


def join(count: int | None) -> tuple[Any, bool]:
    """(ray, whether it was joined here). A cluster that is started here has room for ``count`` workers.

    Raises:
        PumiceError: Ray isn't installed, or there is no cluster where RAY_ADDRESS says.
    """
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("ray", "msgpack"):
            raise PumiceError(f"a Ray cluster needs {error.name}: pip install 'pumice[ray]'") from None
        raise
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    settings: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if not address:
        settings |= {"address": "local", "num_cpus": max(usable_cores(), count or 1), "include_dashboard": False}
    try:
        ray.init(**settings)
    except ConnectionError:
        raise PumiceError(f"Ray: no cluster at RAY_ADDRESS={address}; start it, or unset it for one here") from None
    except Exception as error:  # Ray raises many, plain ones among them
        raise PumiceError(f"Ray: {one_line(error)}") from None
    return ray, True


def spawner(ray: Any, make: Callable[[], Work], share: Share, slots: int) -> Callable[[], Any]:
    """Starts a worker with each call; its class is sent to the cluster once."""
    # With one slot the work runs in its process's main thread, which a browser's page needs.
    cls = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, max_concurrency=slots)(_Worker)
    return lambda: cls.remote(make)


class _Worker:
    """What runs in a worker's process. Errors come back as texts, since not every exception can be sent."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work, self._fault = None, ""
        try:
            self._work = make()
        except Exception as error:
            self._fault = _said(error)

    def fault(self) -> str:
        return self._fault

    def do(self, *args: Any) -> tuple[bool, Any]:
        if self._work is None:
            return False, self._fault
        try:
            return True, self._work(*args)
        except Exception as error:
            return False, _said(error)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PumiceError) else f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """An error in one line; Ray's tell of it in many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
