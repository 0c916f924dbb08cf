"""`ray job submit --working-dir . -- python jobs/report.py --config run.yaml`: the same call as `raycluster report`."""

import sys

from raycluster.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
