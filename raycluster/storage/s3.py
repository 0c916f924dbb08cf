"""S3 clients for one `storage:` section: Arrow's for nearly everything, botocore's for listing and locking.

Each client takes its credentials from the AWS chain (environment, profile, container and instance roles). No code here sees a key.

botocore takes 0.2 s to import, so functions import it when they need it: `raycluster --help` must answer at once.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.section import validate
from raycluster.storage.s3_errors import botocore_errors

log = logging.getLogger(__name__)

# Many S3-compatible servers answer 411 to the checksum trailers that newer AWS SDKs add to every upload.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

ATTEMPTS = 7
"""How often Arrow's client tries a request. With its growing pauses that is half a minute, in which a server restarts or a 503 passes."""
CONNECT_S, REQUEST_S = 10.0, 20.0
"""Seconds to connect, and to wait for an answer, until a request to a silent server is tried again."""
KEYS_A_DELETION = 1000
"""Most objects that one request deletes."""
LIST_THREADS = 16
"""Concurrent requests of a listing."""


def from_environment(options: StorageConfig) -> StorageConfig:
    """Return the options. If they name no S3 server, it is taken from the AWS environment variables of this process.

    As a part of the options it reaches other machines too. Raises :class:`ConfigError` if the variable holds no valid URL.
    """
    if options.endpoint_url or os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return options
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return (
        validate({**options.model_dump(), "endpoint_url": url}, StorageConfig, "AWS_ENDPOINT_URL") if url else options
    )


@lru_cache(maxsize=1024)
def located(options: StorageConfig, bucket: str) -> StorageConfig:
    """Return the options with the region of this bucket. AWS is asked for it once per process; any other server has one region.

    Raises :class:`FileNotFoundError` for a bucket that AWS does not know, and :class:`OSError` if AWS cannot be asked.
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
            # Some networks let out only requests to their own region. A bucket in another region will itself answer that it lies elsewhere.
            log.info(
                "storage: AWS could not be asked for the region of the bucket %s (%s); using %s", bucket, error, usual
            )
    return options.model_copy(update={"region": region})


def _usual_region() -> str | None:
    """Return the region that the environment or the AWS profile names."""
    import botocore.session

    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or botocore.session.Session().get_config_variable("region")


@lru_cache(maxsize=64)
def filesystem(options: StorageConfig, patient: bool = True) -> fs.FileSystem:
    """Return Arrow's client. `options` come from :func:`located`.

    `patient`: False makes a client that gives up within ten seconds, for asking whether a storage answers.
    """
    return fs.S3FileSystem(
        anonymous=options.anonymous,
        region=options.region,
        endpoint_override=_endpoint(options),
        force_virtual_addressing=options.path_style is False,
        # A small file is then one PUT instead of a multipart upload, which takes a third of the time.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS if patient else 2),
        connect_timeout=CONNECT_S if patient else 3,
        request_timeout=REQUEST_S if patient else 4,
    )


def create(options: StorageConfig, path: str, data: bytes) -> bool:
    """Write `bucket/key` with a conditional PUT, which Arrow's client cannot send; False if it exists already. Raises :class:`OSError`."""
    return _put_if(options, path, data, IfNoneMatch="*")


def swap(options: StorageConfig, path: str, old: bytes, new: bytes) -> bool:
    """Replace the content `old` of `bucket/key` by `new` with a conditional PUT; False if it holds something else or is absent.

    Raises :class:`OSError`.
    """
    found = get(options, path)
    if found is None or found[0] != old:
        return False
    if _put_if(options, path, new, IfMatch=found[1]):
        return True
    # If the answer to a PUT was lost, the client sends it again, and it then finds its own result.
    found = get(options, path)
    return found is not None and found[0] == new


def etag(options: StorageConfig, path: str) -> str:
    """Return the ETag of `bucket/key`, which Arrow's client does not tell. Raises :class:`OSError`."""
    bucket, _, key = path.partition("/")
    with botocore_errors():
        answer = python_client(options).head_object(Bucket=bucket, Key=key, **payer(options))
    return str(answer["ETag"]).strip('"')


def get(options: StorageConfig, path: str) -> tuple[bytes, str] | None:
    """Return content and ETag of `bucket/key` with one request, where Arrow's client sends two; None if it is absent.

    Raises :class:`OSError`.
    """
    bucket, _, key = path.partition("/")
    with botocore_errors():
        try:
            answer = python_client(options).get_object(Bucket=bucket, Key=key, **payer(options))
        except python_client(options).exceptions.NoSuchKey:
            return None
        return answer["Body"].read(), answer["ETag"]


def delete(options: StorageConfig, bucket: str, keys: Sequence[str]) -> None:
    """Delete objects of one bucket, a thousand a request. Raises :class:`OSError`."""
    client = python_client(options)
    # A second registration under the same id does nothing, so each hook has an id of its own.
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5, unique_id="raycluster-md5")
    for start in range(0, len(keys), KEYS_A_DELETION):
        objects = [{"Key": key} for key in keys[start : start + KEYS_A_DELETION]]
        with botocore_errors():
            answer = client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}, **payer(options))
        for problem in answer.get("Errors", ())[:1]:
            raise OSError(f"{bucket}/{problem['Key']} cannot be deleted: {problem['Code']}: {problem.get('Message')}")


def _add_md5(request: Any, **_: object) -> None:
    """Add the hash that many S3-compatible servers demand of this request. botocore sends another one since its version 1.36."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _put_if(options: StorageConfig, path: str, data: bytes, **condition: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, key = path.partition("/")
    with botocore_errors():
        try:
            python_client(options).put_object(Bucket=bucket, Key=key, Body=data, **condition, **payer(options))
        except ClientError as error:
            # 409: another process is writing it; 404: the object to be replaced is gone.
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (409, 412) or (status == 404 and "IfMatch" in condition):
                return False
            raise
    return True


@lru_cache(maxsize=64)
def python_client(options: StorageConfig) -> Any:
    """Return a botocore client. It lists page by page, from any key on, with ETags, and writes conditionally; Arrow's client cannot."""
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
    """Return the arguments of a botocore request that say who pays for it."""
    return {"RequestPayer": "requester"} if options.requester_pays else {}


def addressing_style(options: StorageConfig) -> str:
    """Return botocore's name for the place of the bucket in a URL."""
    if options.path_style is None:
        return "path" if options.endpoint_url else "auto"
    return "path" if options.path_style else "virtual"


def _endpoint(options: StorageConfig) -> str | None:
    if options.endpoint_url or not options.path_style:
        return options.endpoint_url
    # Arrow's client puts the bucket in the path on AWS only if it is given the endpoint of AWS.
    china = ".cn" if str(options.region).startswith("cn-") else ""
    return f"https://s3.{options.region}.amazonaws.com{china}"
