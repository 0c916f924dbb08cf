"""`ray job submit --working-dir . -- python jobs/evaluate.py --config run.yaml`: the same call as `raycluster evaluate`."""

import sys

from raycluster.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
