"""Make ``python -m handful`` the same as ``handful``."""

import sys

from handful.cli.main import main

sys.exit(main())
