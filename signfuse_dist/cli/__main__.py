"""``python -m signfuse_dist.cli``, for launchers that start modules."""

import sys

from signfuse_dist.cli import main

sys.exit(main())
