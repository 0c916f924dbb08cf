"""S3 clients for one `storage:` section: Arrow's for nearly everything, botocore's to list and to lock.

Credentials come from the AWS chain of each (environment, profile, container and instance roles); no code here sees a key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import fs

from raycluster.config import StorageConfig, validate

log = logging.getLogger(__name__)

# Many S3-compatible servers answer 411 to the checksum trailers that newer AWS SDKs add to every upload.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

REFUSALS = (
    *("ACCESS_DENIED", "AccessDenied"),
    *("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId"),
    *("SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch"),
    *("EXPIRED_TOKEN", "ExpiredToken", "INVALID_CLIENT_TOKEN_ID", "InvalidToken"),
    *("NO_SUCH_BUCKET", "NoSuchBucket"),
    *("Unable to locate credentials", "Partial credentials", "The config profile", "Error when retrieving credentials"),
    *("HTTP status 301", "PermanentRedirect", "AuthorizationHeaderMalformed"),
)
"""In the text of an error: what the user has to mend, and waiting does not. As Arrow's client and as botocore writes it."""

ATTEMPTS = 7
"""Tries of a request of Arrow's client, with growing pauses: half a minute, in which a server restarts or a 503 passes."""
CONNECT_S, REQUEST_S = 10.0, 20.0
"""Seconds until a request to a silent server is tried again."""
LIST_THREADS = 16
"""Concurrent requests of a listing."""


def from_environment(options: StorageConfig) -> StorageConfig:
    """The options with what the AWS variables of this process say where they are silent; so it reaches other machines too.

    Raises :class:`ConfigError` for an endpoint that is none.
    """
    if options.endpoint_url or os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return options
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return (
        validate({**options.model_dump(), "endpoint_url": url}, StorageConfig, "AWS_ENDPOINT_URL") if url else options
    )


@lru_cache(maxsize=1024)
def located(options: StorageConfig, bucket: str) -> StorageConfig:
    """The options with the region of this bucket, asked of AWS once a process; another server has one region.

    Raises :class:`FileNotFoundError` for a bucket that AWS does not know and :class:`OSError` if it cannot be asked.
    """
    if options.region:
        return options
    usual = _usual_region()
    region = usual or "us-east-1"
    if not options.endpoint_url:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError as error:
            if "not found" in str(error):
                raise FileNotFoundError(f"the bucket {bucket} does not exist") from None
            if usual is None:
                raise
            # A network that only lets requests to its own region out: a bucket elsewhere will say so itself.
            log.info("storage: the region of %s could not be asked for (%s); taking %s", bucket, error, usual)
    return options.model_copy(update={"region": region})


def _usual_region() -> str | None:
    """The region of the environment or of the AWS profile."""
    import botocore.session  # 0.2 s

    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or botocore.session.Session().get_config_variable("region")


@lru_cache(maxsize=64)
def filesystem(options: StorageConfig, patient: bool = True) -> fs.FileSystem:
    """Arrow's client. `options`: of :func:`located`; `patient`: False gives up within ten seconds, for asking whether a storage answers."""
    return fs.S3FileSystem(
        anonymous=options.anonymous,
        region=options.region,
        endpoint_override=_endpoint(options),
        force_virtual_addressing=options.path_style is False,
        # A small file becomes one PUT instead of a multipart upload: a third of the time.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS if patient else 2),
        connect_timeout=CONNECT_S if patient else 3,
        request_timeout=REQUEST_S if patient else 4,
    )


def create(options: StorageConfig, path: str, data: bytes) -> bool:
    """Write `bucket/key` by a conditional PUT, which Arrow's client cannot; False if it is there already. Raises :class:`OSError`."""
    return _put_if(options, path, data, IfNoneMatch="*")


def swap(options: StorageConfig, path: str, old: bytes, new: bytes) -> bool:
    """Write `new` in place of the content `old` of `bucket/key` by a conditional PUT; False if it holds something else or is absent.

    Raises :class:`OSError`.
    """
    found = _get(options, path)
    if found is None or found[0] != old:
        return False
    if _put_if(options, path, new, IfMatch=found[1]):
        return True
    # A PUT whose answer was lost is sent again by the client, and then meets its own result.
    found = _get(options, path)
    return found is not None and found[0] == new


def _get(options: StorageConfig, path: str) -> tuple[bytes, str] | None:
    """Content and ETag of `bucket/key`; None if it is absent."""
    bucket, _, key = path.partition("/")
    with _plain_errors():
        try:
            answer = python_client(options).get_object(Bucket=bucket, Key=key, **payer(options))
        except python_client(options).exceptions.NoSuchKey:
            return None
        return answer["Body"].read(), answer["ETag"]


def _put_if(options: StorageConfig, path: str, data: bytes, **condition: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, key = path.partition("/")
    with _plain_errors():
        try:
            python_client(options).put_object(Bucket=bucket, Key=key, Body=data, **condition, **payer(options))
        except ClientError as error:
            # 409: another writes it this moment; 404: what was to be replaced is gone.
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (409, 412) or (status == 404 and "IfMatch" in condition):
                return False
            raise
    return True


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of botocore as :class:`OSError`, in the words of Arrow's client."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise OSError(f"AWS Error {error.response['Error'].get('Code')}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"AWS Error: {error}") from error


@lru_cache(maxsize=64)
def python_client(options: StorageConfig) -> Any:
    """A botocore client: it lists page by page, from any key on, with ETags, and writes on conditions; Arrow's does none of that."""
    import botocore.session
    from botocore import UNSIGNED

    config = botocore.config.Config(
        signature_version=UNSIGNED if options.anonymous else None,
        max_pool_connections=LIST_THREADS,
        retries={"mode": "standard", "max_attempts": 3},
        connect_timeout=10,
        read_timeout=30,
        s3={"addressing_style": addressing_style(options)},
    )
    session = botocore.session.Session()
    return session.create_client("s3", region_name=options.region, endpoint_url=options.endpoint_url, config=config)


def payer(options: StorageConfig) -> dict[str, str]:
    """What a botocore request says of who pays for it."""
    return {"RequestPayer": "requester"} if options.requester_pays else {}


def addressing_style(options: StorageConfig) -> str:
    """Botocore's word for where the bucket stands in a URL."""
    if options.path_style is None:
        return "path" if options.endpoint_url else "auto"
    return "path" if options.path_style else "virtual"


def _endpoint(options: StorageConfig) -> str | None:
    if options.endpoint_url or not options.path_style:
        return options.endpoint_url
    # Arrow's client addresses AWS by path only if it is told where AWS is.
    china = ".cn" if str(options.region).startswith("cn-") else ""
    return f"https://s3.{options.region}.amazonaws.com{china}"
