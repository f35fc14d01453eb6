"""Tests whose outcome depends on the host, on a kernel with cgroup v2 only: without systemd, and below a real one."""

from __future__ import annotations

import pytest

from tests.engines.guests import PATIENCE_SECONDS, run_tests

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(PATIENCE_SECONDS + 300)]

HERE = "tests/engines"
ELSEWHERE = (
    *("failed_creation", "account", "unreachable", "sixty_four", "ended_at_once", "tree_as_root", "any_name"),
    *("with_a_url", "doctor", "image.sqsh", "within_moments", "zombies", "another_uuid", "mounted_later"),
)
"""Tests, by parts of their names, in which cgroups are of no concern: the host's run of them will do."""


def test_process_machines_with_nothing_but_cgroup_v2() -> None:
    files = [f"{HERE}/test_{name}.py" for name in ("cgroups", "process_machines", "apptainer")]
    chosen = " and ".join(f"not {name}" for name in ELSEWHERE)
    output = run_tests(*files, "-k", chosen, "--durations=25")
    for name in ("test_limits_are_the_cgroups", "test_escaped_processes", "test_memory_eater"):
        for model in ("bubblewrap", "singularity"):
            assert f"[v2-{model}] PASSED" in output.partition(name)[2], f"{name} has not run with {model}"
    assert "[v1" not in output


def test_factory_below_systemd() -> None:
    run_tests(f"{HERE}/guest_systemd.py", "-x", "--durations=25", systemd=True)
