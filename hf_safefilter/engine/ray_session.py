"""Ray for the length of a run: found or started, quiet, its failures in words, stopped if it was started here."""

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
_HUSHED = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_INIT_DEATHS = 3
_HOST_AND_PORT = re.compile(r"(?:ray://)?(.+):(\d+)")
_PATIENCE = 20.0  # seconds


def import_ray() -> Any:
    """The module `ray`, with `ray.data` loaded.

    Raises:
        MissingError: it is not installed; ends with the command that installs it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingError(
            "this needs Ray Data, which is not installed", found=str(error), fix='pip install "hf_safefilter[ray]"'
        ) from error
    return ray


@contextmanager
def running(actors: int, cpus_per_actor: int, gpus_per_actor: float = 0) -> Iterator[Any]:
    """The module `ray`, connected.

    Raises:
        OptionError: this machine has not the GPUs that an actor asks for.
        SafefilterError: what a step raised, as it raised it; or Ray lost its workers again and again.
    """
    ray = import_ray()
    with ExitStack() as quiet:
        if not ray.is_initialized():
            quiet.enter_context(_environment(_HUSHED))
            _start(ray, actors * cpus_per_actor)
            quiet.callback(ray.shutdown)
        _require_room(ray, cpus_per_actor, gpus_per_actor)
        quiet.enter_context(_settings(ray))
        try:
            yield ray
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            raise SafefilterError(
                "workers of Ray died again and again",
                found="most often they are killed by the system, for want of memory",
                fix="use fewer actors or a smaller max_length, and run the same command again: it goes on from here",
            ) from error


def _start(ray: Any, cpus: int) -> None:
    address = os.environ.get(_ADDRESS)
    # "local": else Ray would connect to a cluster that somebody else runs, or once ran, on this machine
    where = {"address": address} if address else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        if address:
            _require_listener(address)
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SafefilterError(
            "Ray does not start",
            found=str(error).splitlines()[0],
            fix=f"check {_ADDRESS} and the cluster's access token, or leave {_ADDRESS} out to use this machine alone",
        ) from error
    logger.info("Ray: %s", where)


def _require_listener(address: str) -> None:
    """Raise `ConnectionError` where nobody listens at a ``host:port``: Ray would try for many minutes."""
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        return  # "auto", of which Ray knows at once
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_PATIENCE).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers at {address}: {error}") from error


def _require_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise, or say so where a cluster may grow, if no machine has room for one actor: Ray would wait in silence."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        return
    most = {kind: max((one.get(kind, 0) for one in machines), default=0) for kind in ("CPU", "GPU")}
    found = f"at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs on a machine"
    if len(machines) > 1 or os.environ.get(_ADDRESS):
        logger.warning("no machine has room for an actor now (%s): waiting for the cluster to grow", found)
        return
    raise OptionError(
        f"this machine has no room for an actor with {cpus} CPUs and {gpus:g} GPUs",
        found=found,
        fix="ask for fewer, or name a cluster that has them: RAY_ADDRESS",
    )


@contextmanager
def _settings(ray: Any) -> Iterator[None]:
    """Of Ray Data, for the length of a run: no bars, no plans, errors as they were raised, a piece stays a block."""
    context = ray.data.DataContext.get_current()
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "raise_original_map_exception": True,
        "target_max_block_size": 1,
        "max_consecutive_actor_init_deaths": _INIT_DEATHS,
    }
    before = {name: getattr(context, name) for name in ours}
    talk = logging.getLogger("ray.data")
    level = talk.level
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        talk.setLevel(logging.CRITICAL)  # an error is raised, and told of there
        yield
    finally:
        talk.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that are not set are set inside the block."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
