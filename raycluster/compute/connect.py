"""Join the Ray cluster that `RAY_ADDRESS` names, or start Ray on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import ray

from raycluster.compute import interrupts
from raycluster.compute.node_checks import SAME_VERSIONS, check_versions
from raycluster.errors import ConfigError, RayclusterError

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Seconds within which a cluster must take a connection."""


def connect() -> None:
    """Call :func:`join`, and raise :class:`ConfigError` if nodes of a joined cluster have other versions than this process."""
    if not ray.is_initialized() and join():
        check_versions()


def join() -> bool:
    """Join the Ray cluster that `RAY_ADDRESS` names, or start Ray on this machine; True if a cluster was joined.

    If this process already uses Ray, nothing changes. Raises :class:`RayclusterError` if no Ray answers there or it cannot be joined.
    """
    if ray.is_initialized():
        return False
    # Ray enables token authentication by default, and says so at every start.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray leaves variables such as CUDA_VISIBLE_DEVICES alone in a process that reserves no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    # Ray's own logs and those of its workers would hide the one line that a stage prints. Errors still arrive as exceptions.
    options = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        _start(options)
        log.info("ray: started on this machine")
        return False
    _check_answers(address)
    try:
        with interrupts.kept():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _not_joined(address, error) from error
    log.info("ray: joined %s", address)
    return True


def _start(options: Mapping[str, Any]) -> None:
    """Start Ray on this machine. Ray waits half a minute for its own processes, which is too short on a busy machine: this tries twice."""
    for is_last in (False, True):
        try:
            with interrupts.kept():
                ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            # Ray raises the class Exception itself, so there is nothing narrower to catch.
            reason = " ".join(str(error).split())[:300]
            if is_last:
                raise RayclusterError(
                    f"ray: it did not start on this machine ({reason}); end other programs, or free memory and disk, and run again"
                ) from error
            log.warning("ray: it did not start (%s); this is tried once more", reason)


def _check_answers(address: str) -> None:
    """Check that something listens at the address. Where nothing does, Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise RayclusterError(
            f"RAY_ADDRESS: nothing answers at {address} ({error}); give the address of a running cluster's head (`ray status`), "
            "or unset RAY_ADDRESS to start Ray on this machine"
        ) from None


def _not_joined(address: str, error: Exception) -> RayclusterError:
    reasons = " ".join(str(each) for each in (error, error.__cause__) if each is not None)
    if "Version mismatch" in reasons:
        return ConfigError(f"ray: {' '.join(str(error).split())}; {SAME_VERSIONS}")
    if "AuthToken" in reasons:
        return ConfigError(
            f"RAY_ADDRESS: the cluster at {address} wants its token; put it into ~/.ray/auth_token or RAY_AUTH_TOKEN, "
            "and set RAY_AUTH_MODE=token"
        )
    return RayclusterError(
        f"RAY_ADDRESS: {address} could not be joined ({' '.join(str(error).split())[:300]}); see `ray status`"
    )
