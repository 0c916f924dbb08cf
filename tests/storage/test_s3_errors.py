"""Test that the causes of S3 errors are found in the messages of Arrow's client, of botocore and of s3fs."""

from __future__ import annotations

import pytest

from raycluster.storage.s3_errors import MENDABLE, Cause, cause_of, is_refusal, is_s3_error

KEY = "When reading information for key '{}' in bucket 'photos': "


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", Cause.DENIED),
        (
            "AWS Error AccessDenied: An error occurred (AccessDenied) when calling the ListObjectsV2 operation",
            Cause.DENIED,
        ),
        ("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: The key does not exist", Cause.WRONG_KEYS),
        ("AWS Error UNKNOWN (HTTP status 400) ... Unable to parse ExceptionName: ExpiredToken", Cause.EXPIRED),
        ("AWS Error: Unable to locate credentials", Cause.NO_KEYS),
        ("AWS Error NO_SUCH_BUCKET during HeadBucket operation", Cause.NO_BUCKET),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadBucket operation", Cause.WRONG_REGION),
        ("AWS Error INVALID_OBJECT_STATE during GetObject operation", Cause.ARCHIVED),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation", Cause.FORBIDDEN),
        ("AWS Error 403: An error occurred (403) when calling the HeadBucket operation: Forbidden", Cause.FORBIDDEN),
        ("[Errno 13] 403: Forbidden", Cause.FORBIDDEN),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7", Cause.SILENT),
        ("AWS Error SLOW_DOWN during GetObject operation: Reduce your request rate.", Cause.OTHER),
    ],
)
def test_each_client_says_it_in_words_of_its_own(text: str, cause: Cause) -> None:
    assert cause_of(OSError(text)) is cause
    if text.startswith("AWS Error"):
        assert cause_of(OSError(KEY.format("a.jpg") + text)) is cause


@pytest.mark.parametrize("key", ["IMG (403).jpg", "AccessDenied.jpg", "ACCESS_DENIED", "403: x", "InvalidToken/a.jpg"])
def test_the_name_of_a_picture_is_no_cause(key: str) -> None:
    busy = OSError(KEY.format(key) + "AWS Error SLOW_DOWN during GetObject operation: Reduce your request rate.")
    assert cause_of(busy) is Cause.OTHER
    assert not is_refusal(busy)


def test_only_what_cannot_pass_is_a_refusal() -> None:
    refused = ("ACCESS_DENIED during HeadObject operation", "UNKNOWN (HTTP status 403) during HeadObject operation")
    assert all(is_refusal(OSError(f"AWS Error {text}")) for text in refused)
    # The keys of a role are renewed, so the next try may succeed.
    assert not is_refusal(OSError("AWS Error EXPIRED_TOKEN during GetObject operation"))
    assert not is_refusal(PermissionError(13, "Permission denied", "/photos/ACCESS_DENIED"))
    assert not is_s3_error(PermissionError(13, "Permission denied"))
    assert Cause.FORBIDDEN not in MENDABLE
