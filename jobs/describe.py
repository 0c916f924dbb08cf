"""`ray job submit --working-dir . -- python jobs/describe.py --config run.yaml`: the same call as `raycluster describe`."""

import sys

from raycluster.cli import main

sys.exit(main(["describe", *sys.argv[1:]]))
