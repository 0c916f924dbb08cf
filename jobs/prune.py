"""`ray job submit --working-dir . -- python jobs/prune.py --output s3://bucket/run --yes`: the same call as `raycluster prune`."""

import sys

from raycluster.cli import main

sys.exit(main(["prune", *sys.argv[1:]]))
