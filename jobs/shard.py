"""`ray job submit --working-dir . -- python jobs/shard.py --config run.yaml`: the same call as `raycluster shard`."""

import sys

from raycluster.cli import main

sys.exit(main(["shard", *sys.argv[1:]]))
