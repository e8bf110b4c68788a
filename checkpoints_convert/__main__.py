"""`python -m checkpoints_convert`."""

import sys

from checkpoints_convert.command import main

sys.exit(main())
