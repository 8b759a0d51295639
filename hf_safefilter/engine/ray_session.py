"""Ray during a run: connected or started, quiet, with plain error messages, and stopped if it was started here."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hf_safefilter.errors import MissingError, OptionError, SafefilterError

logger = logging.getLogger(__name__)

_ADDRESS = "RAY_ADDRESS"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_INIT_DEATHS = 3
_HOST_AND_PORT = re.compile(r"(?:ray://)?(.+):(\d+)")
_CONNECT_SECONDS = 20.0


def import_ray() -> Any:
    """The module `ray`, with `ray.data` loaded.

    Raises:
        MissingError: Ray is not installed; the message ends with the command that installs it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingError(
            "this engine needs Ray Data, which is not installed",
            found=str(error),
            fix='pip install "hf_safefilter[ray]"',
        ) from error
    return ray


@contextmanager
def running(actors: int, cpus_per_actor: int, gpus_per_actor: float = 0) -> Iterator[Any]:
    """The module `ray`, connected to a cluster or to this machine inside the block.

    Raises:
        OptionError: This machine does not have the processors or GPUs for an actor.
        SafefilterError: A step raised it, or workers of Ray died again and again.
    """
    ray = import_ray()
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_environment(_QUIET))
            _start(ray, actors * cpus_per_actor)
            stack.callback(ray.shutdown)
        _require_room(ray, cpus_per_actor, gpus_per_actor)
        stack.enter_context(_settings(ray))
        try:
            yield ray
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            raise SafefilterError(
                "workers of Ray died again and again",
                found="usually the system kills them when memory is short",
                fix="use fewer actors or a smaller `max_length=...`, and run the same command again: it continues from "
                "here",
            ) from error


def _start(ray: Any, cpus: int) -> None:
    address = os.environ.get(_ADDRESS)
    # "local", as Ray would otherwise connect to a cluster that somebody else runs, or once ran, on this machine
    options = {"address": address} if address else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        if address:
            _require_listener(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SafefilterError(
            "Ray did not start",
            found=str(error).splitlines()[0],
            fix=f"check {_ADDRESS} and the cluster's access token, or unset {_ADDRESS} to use this machine alone",
        ) from error
    logger.info("Ray: %s", options)


def _require_listener(address: str) -> None:
    """Raise `ConnectionError` if no server listens at a ``host:port``: Ray would try for many minutes."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return  # "auto", which Ray can check at once
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no server answers at {address}: {error}") from error


def _require_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise if no machine has room for one actor, or warn if a cluster may grow: Ray would wait without a message."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        return
    most = {kind: max((machine.get(kind, 0) for machine in machines), default=0) for kind in ("CPU", "GPU")}
    available = f"at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs on a machine"
    if len(machines) > 1 or os.environ.get(_ADDRESS):
        logger.warning("no machine has room for an actor now (%s): waiting for the cluster to grow", available)
        return
    raise OptionError(
        f"this machine has no room for an actor with {cpus} CPUs and {gpus:g} GPUs",
        found=available,
        fix="use fewer for each actor, or set RAY_ADDRESS to a cluster that has them",
    )


@contextmanager
def _settings(ray: Any) -> Iterator[None]:
    """Set up Ray Data inside the block: no bars, no plans, errors as they were raised, one block for each piece."""
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "raise_original_map_exception": True,
        "target_max_block_size": 1,
        "max_consecutive_actor_init_deaths": _INIT_DEATHS,
    }
    before = {name: getattr(context, name) for name in settings}
    log = logging.getLogger("ray.data")
    level = log.level
    try:
        for name, value in settings.items():
            setattr(context, name, value)
        log.setLevel(logging.CRITICAL)  # errors are raised
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Inside the block, those of the environment variables are set that were not set before."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
