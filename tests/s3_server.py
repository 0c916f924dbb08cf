"""An S3 server for the tests: moto's, with a user and checks of signatures and permissions. Run it as `python s3_server.py PORT`.

moto answers a request without a signature with an error of its own. This server denies access, or allows it if the bucket is public.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "AKIARAYCLUSTERTESTS0", "AWS_SECRET_ACCESS_KEY": "a secret of the tests"}
"""The only user."""


@contextlib.contextmanager
def started() -> Iterator[str]:
    """A server in a process of its own; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "0"}
    command = [os.environ.get("RAYCLUSTER_S3_PYTHON", sys.executable), __file__, str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("moto's server did not start; is moto[server] installed?")
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5):
        return True
    return False


def main() -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.core.authorization import ActionAuthenticatorMixin
    from moto.iam.models import iam_backends
    from moto.s3.exceptions import S3AccessDeniedError
    from moto.s3.models import s3_backends
    from moto.server import main as serve

    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    iam.create_user("us-east-1", "tests")
    key = iam.create_access_key("tests")
    key.access_key_id, key.secret_access_key = KEYS.values()
    allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy("tests", "s3", json.dumps(allowed))

    signed = ActionAuthenticatorMixin._authenticate_and_authorize_s3_action

    def authorize(self: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
        if self.headers.get("Authorization") is not None:
            return signed(self, bucket_name, key_name)
        bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets.get(bucket_name)
        if bucket is None or bucket.acl is None or not bucket.acl.public_read:
            raise S3AccessDeniedError()
        return None

    ActionAuthenticatorMixin._authenticate_and_authorize_s3_action = authorize
    serve(["-p", sys.argv[1]])


if __name__ == "__main__":
    main()
