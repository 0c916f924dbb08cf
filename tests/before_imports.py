"""Environment variables that libraries read when they are imported. `conftest.py` imports this module before all others."""

from __future__ import annotations

import os

import s3_server

if "PYTEST_XDIST_WORKER" in os.environ:
    # Another process runs tests on the same cores. With more threads than cores, the threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# By default Ray's workers have a niceness of 15 and yield to every other process. Beside two busy ones, a test of seconds
# would take minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

S3 = os.environ.get("RAYCLUSTER_TEST_S3")
"""URL of a real S3 server for the tests, with the keys of the AWS variables. If it is not set, moto's server is started."""

if S3 is None:
    # The keys are set before Ray's workers start, and replace any real keys.
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    os.environ.update(s3_server.KEYS)
