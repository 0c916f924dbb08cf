"""`ray job submit --working-dir . -- python jobs/doctor.py --config run.yaml`: the same call as `raycluster doctor`, from the cluster."""

import sys

from raycluster.cli import main

sys.exit(main(["doctor", *sys.argv[1:]]))
