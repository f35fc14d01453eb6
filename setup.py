"""Distribution metadata: what gets installed, its commands and what it depends on."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.findall(r'^__version__ = "(.+)"$', (HERE / "vac" / "__init__.py").read_text(), re.MULTILINE)[0]

# Lower bounds are what EL9 with EPEL and Debian 12 ship, and are tested (requirements/oldest.lock). There is an upper
# bound only where a version is known to break something. What the checkout itself uses is in requirements/.
DOCKER = ["docker>=5.0.2"]
WEB = ["waitress>=1.4.4"]
METRICS = ["prometheus-client>=0.9", *WEB]
VMS = ["libvirt-python>=9", *WEB]
TEST = ["hypothesis>=6.100", "pytest>=8.2", "pytest-timeout>=2.3", "pytest-xdist>=3.5"]
LINT = [
    'axe-core-python>=0.1; python_version >= "3.10"',  # judges the status page in a browser
    "import-linter>=2.1",
    "mkdocs>=1.6",  # for anchors in links
    "mypy>=1.15,<2",  # 2 can't check for Python 3.9
    "ruff>=0.17",
    "types-docker>=7",
    "types-setuptools>=69",
    "types-waitress>=3",
]

setup(
    name="vac-factory",
    version=VERSION,
    description="Machine factory daemon: fills a node with virtual machines and containers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The Vac developers",
    license="BSD-2-Clause",
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: System :: Distributed Computing",
    ],
    packages=find_packages(include=["vac", "vac.*"]),
    package_data={"vac": ["py.typed"]},
    data_files=[  # for `pip install`; packages have these in their own places
        ("share/vac-factory/systemd", sorted(map(str, Path("systemd").iterdir()))),
        ("share/vac-factory/vac.d", ["etc/vac.d/site.conf.sample"]),
    ],
    python_requires=">=3.9",
    install_requires=[
        "cryptography>=36",
        "pycurl>=7.43.0.6",
        "python-daemon>=2.3",
        "setproctitle>=1.2.2",
    ],
    extras_require={
        "docker": DOCKER,
        "metrics": METRICS,
        "vms": VMS,
        "test": [*TEST, *DOCKER, *METRICS, *VMS],
        "dev": [*TEST, *DOCKER, *METRICS, *VMS, *LINT],
    },
    entry_points={
        "console_scripts": [
            "vac = vac.cli.main:main",
            "vacd = vac.daemon:main",
            "check-vacd = vac.cli.check_vacd:main",
        ],
    },
)
