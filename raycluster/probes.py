"""Questions to a storage, each answered within seconds: does it list, take, give and delete; what is wrong, and how to mend it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pyarrow import fs

from raycluster.config import RunConfig, StorageConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage import Location, impatient_filesystem, locate


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    remedy: str = ""
    """What to do about it; empty if nothing is wrong."""


def attempt(name: str, probe: Callable[[], str]) -> Check:
    """Call `probe`, which returns what it found or raises an error of ours (reason; remedy), and note how long it took."""
    started = time.perf_counter()
    try:
        detail = probe()
    except RayclusterError as error:
        reason, _, remedy = str(error).rpartition("; ")
        return Check(name, "failed", reason or remedy, remedy)
    return Check(name, "ok", f"{detail} ({time.perf_counter() - started:.1f} s)")


def storage_checks(config: RunConfig) -> list[Check]:
    """Credentials, then list, put, get, delete and lock on the output, then the inputs; from the machine where it is called."""
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
        return "none, as storage.anonymous says"
    import botocore.session

    # Where there is no metadata service, its default asks for a second.
    found = botocore.session.get_session().get_credentials()
    if found is None:
        raise ConfigError(
            "no AWS credentials were found; give the machine a role (instance profile, IRSA), set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a public bucket storage.anonymous: true"
        )
    return f"from {found.method}, key …{found.access_key[-4:]}"


def _output_checks(output: Location) -> Iterator[Check]:
    """In this order; what follows a failure is skipped, for it could only fail for the same reason."""
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
    """Arrow tells a bucket that is absent from an empty one only when asked for it alone."""
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
        raise ConfigError(f"{probe.uri} reads otherwise than it was written; do not use this storage")
    return "read it back"


def _delete(client: fs.FileSystem, probe: Location) -> str:
    client.delete_file(probe.path)
    if client.get_file_info(probe.path).type != fs.FileType.NotFound:
        raise ConfigError(
            f"{probe.uri} is still there after it was deleted; switch off what holds it, such as an object lock"
        )
    return "deleted it"


def _lock(file: Location) -> str:
    try:
        first, second = file.create(b"first"), file.create(b"second")
    finally:
        file.delete()
    if not first or second:
        raise ConfigError(
            "the server ignores `If-None-Match: *`, by which one run at a time is ensured; "
            "see to it yourself that no two runs write to this output"
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
    """The folder that holds what a pattern (`shard-{000..099}.tar`, `*.tar`) names; another source as it is."""
    plain = re.split(r"[*?\[{]", source, maxsplit=1)[0]
    return source if plain == source else plain.rpartition("/")[0] or "."


_PERMISSIONS = {"list": "s3:ListBucket", "put": "s3:PutObject", "get": "s3:GetObject", "delete": "s3:DeleteObject"}
_WRONG_KEYS = (
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
)
_EXPIRED = ("EXPIRED_TOKEN", "ExpiredToken", "REQUEST_EXPIRED")
_SILENT = ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT", "Connection refused", "resolve")


def _explained(probing: Callable[[], str], what: str, step: str) -> str:
    """Call it, and make of a storage's error one that names reason and remedy."""
    try:
        return probing()
    except RayclusterError as error:
        raise ConfigError(f"{what}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {_diagnosis(error, step)}") from None


def _diagnosis(error: Exception, step: str) -> str:
    """Reason and remedy, with a semicolon between."""
    said = " ".join(str(error).split()).replace(";", ",")
    if any(code in said for code in _WRONG_KEYS):
        return f"the server does not know these keys ({said}); replace the keys that `credentials` names"
    if any(code in said for code in _EXPIRED):
        return f"the credentials have expired ({said}); renew them, or use a role, which renews itself"
    if "ACCESS_DENIED" in said or "Forbidden" in said or "403" in said:
        wanted = _PERMISSIONS.get(step, "s3:PutObject")
        return f"access is denied ({said}); check the keys that `credentials` names, and that they are allowed {wanted} there"
    if isinstance(error, PermissionError):
        return f"not permitted ({said}); change its permissions or choose another place"
    if any(code in said for code in _SILENT):
        return f"the server does not answer ({said}); check storage.endpoint_url, storage.region and the way there (VPC, proxy, firewall)"
    if "411" in said:
        return f"the server wants no checksum trailers ({said}); set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    if "301" in said or "PERMANENT_REDIRECT" in said:
        return f"the bucket lies in another region ({said}); set storage.region"
    return f"{said}; mend it, or choose another place"
