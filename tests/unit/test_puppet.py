"""The Puppet module, as far as it can be judged without Puppet; `make puppet` applies it."""

from __future__ import annotations

import json
import re

import pytest

import vac
from tests.unit.test_packaging import CHECKOUT

MODULE = CHECKOUT / "puppet" / "vac"
CLASSIC = {
    *(
        "space",
        "subspace",
        *(f"subspace{number}" for number in range(1, 10)),
        "etc_path",
        "machinetypes_path",
    ),
    *("nagios_nrpe", "apel_cert_path", "apel_key_path", "local_squid"),
}
INIT = (MODULE / "manifests" / "init.pp").read_text()
PARAMETERS = set(re.findall(r"^  \S.* \$(\w+) += ", INIT.partition(") {")[0], re.MULTILINE))


def test_the_module_has_the_version_of_vac() -> None:
    metadata = json.loads((MODULE / "metadata.json").read_text())
    assert metadata["version"] == vac.__version__
    assert {each["name"] for each in metadata["requirements"]} == {"puppet", "openvox"}


def test_the_parameters_of_vac_3_are_there_and_all_are_documented() -> None:
    assert CLASSIC < PARAMETERS
    assert set(re.findall(r"^# @param (\w+)$", INIT, re.MULTILINE)) == PARAMETERS


@pytest.mark.parametrize(
    ("directory", "kind"), [("manifests", "class"), ("functions", "function"), ("types", "type")]
)
def test_puppet_finds_each_name_in_its_file(directory: str, kind: str) -> None:
    for path in sorted((MODULE / directory).glob("*.pp")):
        name = "vac" if path.name == "init.pp" else f"vac::{path.stem}"
        assert re.search(rf"^{kind} {name}\b", path.read_text(), re.MULTILINE | re.IGNORECASE), path


def test_every_parameter_from_hiera_is_one_of_the_class() -> None:
    for path in (MODULE / "data").rglob("*.yaml"):
        assert set(re.findall(r"^vac::(\w+):", path.read_text(), re.MULTILINE)) <= PARAMETERS, path


def test_files_of_the_accounting_timers_are_in_the_package() -> None:
    text = (MODULE / "manifests" / "apel.pp").read_text()
    named = set(re.findall(r"vac-[\w-]+\.(?:service|timer|cfg)", text))
    assert named <= {path.name for path in (CHECKOUT / "packaging" / "accounting").iterdir()}
    config = (CHECKOUT / "packaging" / "accounting" / "vac-ssmsend-prod.cfg").read_text()
    for path in re.findall(r"/etc/grid-security/vac-apel-\w+\.pem", text):
        assert path in config
