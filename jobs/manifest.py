"""`ray job submit --working-dir . -- python jobs/manifest.py --config run.yaml`: the same call as `raycluster manifest`."""

import sys

from raycluster.cli import main

sys.exit(main(["manifest", *sys.argv[1:]]))
