"""Probes of a storage, each done within seconds: can it list, write, read and delete; what is wrong, and how to mend it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import botocore.session
from pyarrow import fs

from raycluster.config import RunConfig, StorageConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage.location import Location, impatient_filesystem, locate
from raycluster.storage.s3_errors import Cause, cause_of


@dataclass(frozen=True)
class Check:
    """The result of one probe."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    remedy: str = ""
    """What to do about it; empty if nothing is wrong."""


def attempt(name: str, probe: Callable[[], str]) -> Check:
    """Call `probe`, which returns what it found or raises a :class:`RayclusterError` (reason; remedy), and note how long it took."""
    started = time.perf_counter()
    try:
        detail = probe()
    except RayclusterError as error:
        reason, remedy = error.reason_and_remedy
        return Check(name, "failed", reason, remedy)
    return Check(name, "ok", f"{detail} ({time.perf_counter() - started:.1f} s)")


def storage_checks(config: RunConfig) -> list[Check]:
    """Check the credentials, then list, put, get, delete and lock on the output, then the inputs, all from the machine that calls this."""
    output = locate(config.output, config.storage)
    sources = (*config.image_sources, *config.embedding_sources)
    field = "images" if config.images is not None else "embeddings"
    checks = []
    if any(locate(uri, config.storage).scheme == "s3" for uri in (config.output, *sources)):
        checks.append(attempt("credentials", lambda: _credentials(config.storage)))
    checks += _output_checks(output)
    return checks + [attempt(f"{field} list", partial(_input, field, source, config.storage)) for source in sources]


def _credentials(options: StorageConfig) -> str:
    if options.anonymous:
        return "not used, because storage.anonymous is true"
    # Where there is no metadata service, botocore waits a second for it by default.
    found = botocore.session.get_session().get_credentials()
    if found is None:
        raise ConfigError(
            "no AWS credentials were found; give the machine a role (instance profile, IRSA), set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a public bucket storage.anonymous: true"
        )
    return f"from {found.method}, key …{found.access_key[-4:]}"


def _output_checks(output: Location) -> Iterator[Check]:
    """Yield the checks of the output in this order. Those after a failure are skipped, because they would fail for the same reason."""
    name = f"_doctor-{uuid.uuid4().hex[:8]}"
    client, probe = impatient_filesystem(output), output / name
    steps: dict[str, Callable[[], str]] = {
        "list": lambda: _list(client, output),
        "put": lambda: _put(client, probe),
        "get": lambda: _get(client, probe),
        "delete": lambda: _delete(client, probe),
        "lock": lambda: _lock(output / f"{name}-lock"),
    }
    broken = ""
    try:
        for step, probing in steps.items():
            if broken:
                yield Check(f"output {step}", "skipped", f"not tried, because `{broken}` failed")
                continue
            check = attempt(f"output {step}", partial(_explained, probing, f"output: {output.uri}", step))
            broken = check.name if check.state == "failed" else ""
            yield check
    except KeyboardInterrupt:
        probe.delete()
        raise


def _list(client: fs.FileSystem, place: Location) -> str:
    _check_bucket(client, place)
    found = client.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
    return f"{len(found)} entries in {place.uri}"


def _check_bucket(client: fs.FileSystem, place: Location) -> None:
    """Raise :class:`ConfigError` if the bucket does not exist.

    Arrow tells a missing bucket from an empty one only when it is asked for the bucket itself.
    """
    bucket = place.path.partition("/")[0]
    if place.scheme == "s3" and client.get_file_info(bucket).type == fs.FileType.NotFound:
        raise ConfigError(f"the bucket {bucket} does not exist; create it, or correct its name")


def _put(client: fs.FileSystem, probe: Location) -> str:
    if probe.scheme == "file":
        client.create_dir(probe.parent.path, recursive=True)
    with client.open_output_stream(probe.path) as stream:
        stream.write(probe.name.encode())
    return f"wrote {probe.name}"


def _get(client: fs.FileSystem, probe: Location) -> str:
    with client.open_input_stream(probe.path) as stream:
        content = stream.read()
    if content != probe.name.encode():
        raise ConfigError(f"{probe.uri} does not hold what was written to it; use another storage")
    return "read it back"


def _delete(client: fs.FileSystem, probe: Location) -> str:
    client.delete_file(probe.path)
    if client.get_file_info(probe.path).type != fs.FileType.NotFound:
        raise ConfigError(
            f"{probe.uri} is still there after it was deleted; switch off what keeps it, such as an object lock"
        )
    return "deleted it"


def _lock(file: Location) -> str:
    try:
        first, second = file.create(b"first"), file.create(b"second")
    finally:
        file.delete()
    if not first or second:
        raise ConfigError(
            "the server ignores `If-None-Match: *`, so the lock cannot keep a second run out; "
            "make sure yourself that no two runs write to this output"
        )
    return "a second run would be refused"


def _input(field: str, source: str, options: StorageConfig) -> str:
    place = locate(_prefix(source), options)
    client = impatient_filesystem(place)

    def look() -> str:
        _check_bucket(client, place)
        if client.get_file_info(place.path).type == fs.FileType.NotFound:
            raise ConfigError(f"nothing is there; correct `{field}`")
        return f"{place.uri} is there"

    return _explained(look, f"{field}: {source}", "list")


def _prefix(source: str) -> str:
    """Return the folder that holds the files of a pattern (`shard-{000..099}.tar`, `*.tar`); another source is returned as it is."""
    plain = re.split(r"[*?\[{]", source, maxsplit=1)[0]
    return source if plain == source else plain.rpartition("/")[0] or "."


_PERMISSIONS = {"list": "s3:ListBucket", "put": "s3:PutObject", "get": "s3:GetObject", "delete": "s3:DeleteObject"}


def _explained(probing: Callable[[], str], what: str, step: str) -> str:
    """Call `probing`; its errors are raised as :class:`ConfigError` with reason and remedy."""
    try:
        return probing()
    except RayclusterError as error:
        raise ConfigError(f"{what}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {_diagnosis(error, step)}") from None


def _diagnosis(error: Exception, step: str) -> str:
    """Return reason and remedy of an error, separated by a semicolon."""
    said, cause = " ".join(str(error).split()).replace(";", ","), cause_of(error)
    if cause in (Cause.DENIED, Cause.FORBIDDEN):
        wanted = _PERMISSIONS.get(step, "s3:PutObject")
        return f"access is denied ({said}); check the keys that the line `credentials` shows, and that they are allowed {wanted} there"
    if isinstance(error, PermissionError):
        return f"permission is denied ({said}); change the permissions there, or choose another place"
    remedies = {
        Cause.NO_KEYS: "set a profile or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
        Cause.NO_BUCKET: "create the bucket, or correct its name",
        Cause.WRONG_KEYS: "replace the keys that the line `credentials` shows",
        Cause.EXPIRED: "renew them, or use a role, which renews them by itself",
        Cause.SILENT: "check storage.endpoint_url, storage.region and the network route to it (VPC, proxy, firewall)",
        Cause.UNWANTED_CHECKSUM: "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
        Cause.WRONG_REGION: "set storage.region",
    }
    if cause in remedies:
        return f"{cause.value} ({said}); {remedies[cause]}"
    return f"{said}; remove the cause, or choose another place"
