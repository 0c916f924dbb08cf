"""The cause of an S3 error. Arrow's client and botocore give it as text, each in its own words. Only this module reads these texts.

botocore takes 0.2 s to import, so functions import it when they need it: `raycluster --help` must answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Cause(Enum):
    """The cause of an S3 error."""

    WRONG_KEYS = "the server does not know the keys"
    EXPIRED = "the credentials have expired"
    NO_KEYS = "there are no credentials"
    NO_BUCKET = "there is no such bucket"
    WRONG_REGION = "the bucket lies in another region"
    ARCHIVED = "the object is archived"
    DENIED = "access is denied"
    FORBIDDEN = "access is refused, without a reason"
    UNWANTED_CHECKSUM = "the server does not accept checksum trailers"
    SILENT = "the server does not answer"
    OTHER = "anything else"


_TEXTS = {
    Cause.WRONG_KEYS: (
        *("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch"),
        *("UNRECOGNIZED_CLIENT", "INVALID_CLIENT_TOKEN_ID", "InvalidToken"),
    ),
    Cause.EXPIRED: ("EXPIRED_TOKEN", "ExpiredToken", "REQUEST_EXPIRED"),
    Cause.NO_KEYS: (
        *("Unable to locate credentials", "Partial credentials", "The config profile"),
        "Error when retrieving credentials",
    ),
    Cause.NO_BUCKET: ("NO_SUCH_BUCKET", "NoSuchBucket"),
    Cause.WRONG_REGION: ("HTTP status 301", "PermanentRedirect", "PERMANENT_REDIRECT", "AuthorizationHeaderMalformed"),
    Cause.ARCHIVED: ("INVALID_OBJECT_STATE", "InvalidObjectState"),
    Cause.DENIED: ("ACCESS_DENIED", "AccessDenied"),
    Cause.FORBIDDEN: ("HTTP status 403", "403: ", "occurred (403)"),
    Cause.UNWANTED_CHECKSUM: ("HTTP status 411", "MissingContentLength"),
    Cause.SILENT: ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT", "Connection refused", "resolve"),
}
"""Parts of the error texts, searched in this order. Names come before status codes, because a refusal with a name also has a status."""

MENDABLE = frozenset(
    {Cause.WRONG_KEYS, Cause.EXPIRED, Cause.DENIED, Cause.NO_KEYS, Cause.NO_BUCKET, Cause.WRONG_REGION}
)
"""Causes that the user has to mend."""


def cause_of(error: BaseException | str) -> Cause:
    """Return the cause of an error of an S3 client, or of an error code that the server gave."""
    # Arrow names the key before these words, and a key may be called `AccessDenied.jpg`.
    before, words, after = str(error).partition("AWS Error")
    text = after if words else before
    for cause, parts in _TEXTS.items():
        if any(part in text for part in parts):
            return cause
    return Cause.OTHER


def is_s3_error(error: BaseException) -> bool:
    """Return whether an error came from an S3 client, and not from a file that it read."""
    return isinstance(error, OSError) and "AWS Error" in str(error)


def is_refusal(error: BaseException) -> bool:
    """Return whether the server refused a request, so that trying again does not help. Expired keys are none: a role renews them."""
    after = str(error).partition("AWS Error")[2]
    return "ACCESS_DENIED" in after or "HTTP status 403" in after


def refusal_name(error: OSError) -> str | None:
    """Return the name that the server gave to a refusal of the credentials; None if the error is not such a refusal."""
    text = str(error)
    # Arrow has its own names for some refusals, and passes on the server's names for the others.
    named = re.search(r"ExceptionName: (\w+)", text) or re.search(
        r"AWS Error (INVALID_\w+|SIGNATURE_\w+|EXPIRED_\w+)", text
    )
    if named and (named[0].startswith("AWS") or "HTTP status 403" in text or "Token" in named[1]):
        return named[1]
    return None


@contextmanager
def botocore_errors() -> Iterator[None]:
    """Context that raises errors of botocore as :class:`OSError`, worded like those of Arrow's client."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise OSError(f"AWS Error {error.response['Error'].get('Code')}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"AWS Error: {error}") from error
