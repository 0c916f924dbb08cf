"""`ray job submit --working-dir . -- python jobs/train.py --config run.yaml`: the same call as `raycluster train`."""

import sys

from raycluster.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
