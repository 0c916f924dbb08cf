"""`ray job submit --working-dir . -- python jobs/embed.py --config run.yaml`: the same call as `raycluster embed`."""

import sys

from raycluster.cli import main

sys.exit(main(["embed", *sys.argv[1:]]))
