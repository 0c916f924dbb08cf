"""`ray job submit --working-dir . -- python jobs/assign.py …`: the same call as `raycluster assign`, with `--model` or without."""

import sys

from raycluster.cli import main

sys.exit(main(["assign", *sys.argv[1:]]))
