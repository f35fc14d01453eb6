"""`python -m vac.daemon`, as the supervisor starts its roles."""

from __future__ import annotations

import sys

from vac.daemon import main

sys.exit(main())
