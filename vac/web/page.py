"""vacd-page: metrics for Prometheus and the status page for people, at metrics_listen.

What it is made of may be missing from this host, which is then said; nothing else of vacd needs it.
"""

from __future__ import annotations

import logging

from vac.roles import RoleOptions

log = logging.getLogger(__name__)


def main(options: RoleOptions) -> int:
    """The process of the role `page`: 0 when told to end, 1 when it can't work as configured."""
    try:
        from vac.web import people
    except ImportError as error:
        if (error.name or "vac").startswith("vac"):
            raise
        log.error(
            "metrics_listen: the Python package %s isn't there: install python3-prometheus-client and "
            "python3-waitress, or pip install 'vac-factory[metrics]'",
            error.name,
        )
        return 1
    return people.run(options)
