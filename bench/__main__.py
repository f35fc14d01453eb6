"""`python -m bench [NAME …]`: run the measurements of this directory, or those named, one process each.

Every module here that has a run() is one. What can't be measured on this host says why and fails alone.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import time

import bench


def names() -> list[str]:
    """The measurements there are."""
    found = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name != "__main__"]
    return [name for name in found if hasattr(importlib.import_module(f"bench.{name}"), "run")]


def main(words: list[str]) -> int:
    """Run one in this process (`--here NAME`), or several."""
    if words[:1] == ["--here"]:
        importlib.import_module(f"bench.{words[1]}").run()
        return 0
    known, failed = names(), []
    unknown = [word for word in words if word not in known]
    if unknown:
        print(f"bench: no measurement {unknown[0]}; there are: {' '.join(known)}", file=sys.stderr)
        return 2
    for name in words or known:
        begun = time.monotonic()
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "bench", "--here", name], check=False).returncode:
            failed.append(name)
        print(f"-- {name}: {time.monotonic() - begun:.0f} s", flush=True)
    if failed:
        print(f"not measured: {' '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
