"""`python -m vac.daemon`, the supervisor's way of starting roles."""

from __future__ import annotations

import sys

from vac.daemon import main

sys.exit(main())
