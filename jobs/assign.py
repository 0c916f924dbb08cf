"""`ray job submit --working-dir . -- python jobs/assign.py --config run.yaml`: the same call as `raycluster assign`."""

import sys

from raycluster.cli import main

sys.exit(main(["assign", *sys.argv[1:]]))
