"""`ray job submit --working-dir . -- python jobs/finetune.py --config run.yaml`: the same call as `raycluster finetune`."""

import sys

from raycluster.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
