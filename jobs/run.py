"""`ray job submit --working-dir . -- python jobs/run.py --config run.yaml`: the same call as `raycluster run`."""

import sys

from raycluster.cli import main

sys.exit(main(["run", *sys.argv[1:]]))
