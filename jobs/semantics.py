"""`ray job submit --working-dir . -- python jobs/semantics.py --config run.yaml`: the same call as `raycluster semantics`."""

import sys

from raycluster.cli import main

sys.exit(main(["semantics", *sys.argv[1:]]))
