"""Run the unit tests on other supported Pythons of this host: `each_python.py [VERSION …]`, or all.

3.9 gets the oldest packages that setup.py allows and 3.13 the newest, the others what .venv has (requirements/).
Interpreters are looked for among pyenv's versions and on PATH. Each gets an environment below .venv with only what unit
tests need, so `make` renews it together with .venv. Print one line per version, also for one that this host
doesn't have, and all output where tests fail; exit with 1 if any failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SUPPORTED = ("3.9", "3.10", "3.11", "3.12", "3.13")
LOCKS = {"3.9": "oldest", "3.13": "newest"}
DEFAULT_LOCK = "checkout"
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=brief", "tests/unit"]


def candidates(version: str) -> Iterator[Path]:
    """Paths where an interpreter of this version may be; a pyenv shim among them may turn out not to work."""
    pyenv_root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv_root.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)


def works(python: Path) -> bool:
    """True if the interpreter starts and can make environments."""
    check = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    return check.returncode == 0


def requirements() -> list[str]:
    """Return what the installed distribution requires for running and for unit tests, as setup.py has it."""
    lines = metadata.requires("vac-factory") or []
    return [line.split(";")[0] for line in lines if "extra ==" not in line or 'extra == "test"' in line]


def environment(version: str, python: Path, lock: str) -> Path:
    """Return the interpreter of the version's own environment, which is made and filled if it isn't there yet."""
    home = CHECKOUT / ".venv" / "pythons" / version
    stamp = home / "complete"
    if not stamp.exists():
        run([python, "-m", "venv", "--clear", home])
        constraints = CHECKOUT / "requirements" / f"{lock}.lock"
        pip: list[str | Path] = [
            home / "bin" / "pip",
            "install",
            "-qq",
            "--no-build-isolation",
            "--constraint",
            constraints,
        ]
        run([*pip, "setuptools", "wheel"])
        run([*pip, *requirements()])
        stamp.touch()
    return home / "bin" / "python"


def run(arguments: list[str | Path]) -> str:
    """Return standard output and error of a command, whose Pythons find the checkout's packages.

    CalledProcessError carries them if it fails.
    """
    done = subprocess.run(
        arguments,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


def unit_tests(version: str, python: Path) -> bool:
    """Run them and report; return true if they passed."""
    lock = LOCKS.get(version, DEFAULT_LOCK)
    title = f"unit tests on Python {version}, packages of requirements/{lock}.lock"
    try:
        output = run([environment(version, python, lock), *PYTEST])
    except subprocess.CalledProcessError as error:
        print(f"{title}: FAILED with {python}:\n{error.output}", flush=True)
        return False
    print(f"{title}: {output.strip().splitlines()[-1]}", flush=True)
    return True


def main(versions: list[str]) -> int:
    """Run one interpreter per processor at a time."""
    running = "{}.{}".format(*sys.version_info[:2])
    found = {}
    for version in versions or SUPPORTED:
        if version == running and version not in LOCKS:
            continue  # which is .venv's own
        python = next(filter(works, candidates(version)), None)
        if python is None:
            print(f"unit tests on Python {version}: left out, this host has no python{version}", flush=True)
        else:
            found[version] = python
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(unit_tests, found, found.values()))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
