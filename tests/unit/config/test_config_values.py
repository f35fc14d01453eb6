"""Each kind of value: what is read, what is refused in which words, and that writing is reading's inverse."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.config.machinetype import CAPABILITIES, MODELS, Machinetype, VacuumPipe
from vac.config.options import BadValue, Kind, Option, allowed, declared, parse, render, split_host_port
from vac.config.settings import Settings
from vac.text import quoted

OPTIONS = {
    **{f"settings.{name}": option for name, option in declared(Settings).items()},
    **{f"machinetype.{name}": option for name, option in declared(Machinetype).items()},
    **{f"pipe.{name}": option for name, option in declared(VacuumPipe).items()},
}


@pytest.mark.parametrize("words", ["yes", "true", "on", "1", "YES", "True", "On"])
def test_ways_to_say_yes(words: str) -> None:
    assert parse(Option(Kind.BOOLEAN, ""), words) is True


@pytest.mark.parametrize("words", ["no", "false", "off", "0", "NO", "False", "Off"])
def test_ways_to_say_no(words: str) -> None:
    assert parse(Option(Kind.BOOLEAN, ""), words) is False


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("settings.total_processors", "16", 16),
        ("settings.overload_per_processor", "1.5", 1.5),
        ("settings.overload_per_processor", "2", 2.0),
        ("settings.overload_per_processor", ".5e1", 5.0),
        ("settings.version_logger", "yes", 1),
        ("settings.version_logger", "false", 0),
        ("settings.version_logger", "24", 24),
        ("settings.shutdown_time", "1924988400", 1924988400),
        ("settings.factories", "VAC-01.Example.org . vac-02", ("vac-01.example.org", ".", "vac-02")),
        ("settings.factories", "a.org\nb.org", ("a.org", "b.org")),
        ("settings.state_dir", "/srv/vac", Path("/srv/vac")),
        ("settings.description", "two\n\twords", "two words"),
        ("settings.description", "", None),
        ("settings.share_policy", "Classic", "classic"),
        ("settings.vacmon_hostport", "a.org:8884 [2001:db8::1]:99", ("a.org:8884", "[2001:db8::1]:99")),
        (
            "settings.vacquery_allow",
            "192.0.2.0/24 2001:db8::/32",
            (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32")),
        ),
        ("machinetype.container_capabilities", "none", ()),
        ("machinetype.container_capabilities", "CAP_CHOWN kill", ("CHOWN", "KILL")),
        ("machinetype.container_command", "/opt/pilot", "/opt/pilot"),
        ("machinetype.tmp_binds", "/scratch /var/spool", ("/scratch", "/var/spool")),
        ("machinetype.container_user", "1000:1000", "1000:1000"),
        ("machinetype.token_dir", "", None),
    ],
)
def test_values_as_people_write_them(name: str, text: str, value: object) -> None:
    found = parse(OPTIONS[name], text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("settings.total_processors", "many", "'many' is not an integer, 1 or more"),
        ("settings.total_processors", "", "'' is not an integer, 1 or more"),
        ("settings.total_processors", "0", "'0' is not an integer, 1 or more"),
        ("settings.total_processors", "1.5", "'1.5' is not an integer"),
        ("settings.total_processors", "1_000", "is not an integer"),
        ("settings.total_processors", "\u0663", "is not an integer"),
        ("settings.total_processors", "9999999999", "(the largest is 1000000000)"),
        ("settings.total_processors", "9" * 5000, "is not an integer"),
        ("settings.vacquery_port", "65536", "'65536' is not an integer from 1 to 65535"),
        ("settings.udp_timeout_seconds", "0", "is not a number from 0.1 to 3600"),
        ("settings.overload_per_processor", "nan", "'nan' is not a number, 0 or more"),
        ("settings.overload_per_processor", "inf", "'inf' is not a number"),
        ("settings.overload_per_processor", "1e999", "the largest is"),
        ("settings.overload_per_processor", "-1", "0 or more"),
        ("settings.shutdown_time", "tomorrow", "is not Unix seconds"),
        ("settings.draining", "maybe", "is not yes or no"),
        ("settings.draining", "", "is not yes or no"),
        ("settings.version_logger", "-1", "is not an integer, or yes (1) or no (0)"),
        ("settings.state_dir", "var/lib/vac", "is not an absolute path"),
        ("settings.state_dir", "/var\n/lib", "is not an absolute path"),
        ("settings.state_dir", "/var\x00lib", "holds a control character"),
        ("settings.share_policy", "fair", "is not one of deficit, classic"),
        ("settings.vac_space", "my space", "is not a name of letters, digits"),
        ("settings.vac_space", "../etc", "is not a name of letters, digits"),
        ("settings.factories", "good.org b@d", "'b@d' is not a host name"),
        ("settings.factories", "a..b", "'a..b' is not a host name"),
        ("settings.vacquery_allow", "10.1.2.3/8", "'10.1.2.3/8' is not a network such as"),
        ("settings.vacmon_hostport", "vacmon.example.org", "is not HOST:PORT"),
        ("settings.metrics_listen", "0.0.0.0:99999", "is not HOST:PORT"),
        ("settings.docker_host", "/run/docker.sock", "is not a URL"),
        (
            "settings.gocdb_url",
            "ftp://u:pw@goc.example.org",
            "'ftp://***@goc.example.org' is not an http:// or",
        ),
        ("settings.volume_group", "..", "is not a name of letters"),
        ("settings.singularity_user", "a/b", "is not a user's name"),
        ("settings.forward_dev", "an-interface-name-too-long", "is not a network interface's name"),
        ("machinetype.machine_model", "xen", "is not one of cernvm3, cernvm4, vm-raw, docker, singularity"),
        ("machinetype.heartbeat_file", "../shadow", "is not a file's name without directory"),
        ("machinetype.heartbeat_file", "..", "is not a file's name without directory"),
        ("machinetype.cvmfs_repositories", "grid.cern.ch ../..", "'../..' is not a repository's name"),
        ("machinetype.tmp_binds", "/a ../b", "'../b' is not an absolute path"),
        ("machinetype.tmp_binds", "/a/../../etc", "is not an absolute path without blanks and '..'"),
        ("machinetype.tmp_binds", "/", "is not an absolute path"),
        ("machinetype.container_command", "/bin/sh -c x", "is not an absolute path without blanks"),
        ("machinetype.container_capabilities", "CHOWN EVERYTHING", "'EVERYTHING' is not a Linux capability"),
        ("machinetype.container_capabilities", "none CHOWN", "neither a list of capabilities nor none alone"),
        ("machinetype.container_capabilities", "", "neither a list of capabilities nor none alone"),
        ("machinetype.container_dns", "192.0.2.300", "'192.0.2.300' is not an IP address"),
        ("machinetype.image_signing_dn", "/CN=(", "is not a regular expression"),
        ("machinetype.image_signing_dn", "(" * 5000 + ")" * 5000, "is not a regular expression"),
        ("machinetype.root_device", "sda/1", "is not a name of a-z and 0-9"),
        ("machinetype.container_user", "me you", "is not a user or uid"),
        ("pipe.vacuum_pipe_url", "file:///etc/shadow", "is not an http:// or https:// URL"),
    ],
)
def test_bad_values_are_refused_in_words_that_say_what_is_right(name: str, text: str, words: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(OPTIONS[name], text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", OPTIONS)
def test_every_sample_and_every_default_can_be_read(name: str) -> None:
    option = OPTIONS[name]
    holder: type = {"settings": Settings, "machinetype": Machinetype, "pipe": VacuumPipe}[
        name.partition(".")[0]
    ]
    default = getattr(holder, name.partition(".")[2])
    if option.sample:
        assert parse(option, option.sample) is not None
    if default not in (None, "", ()) and not option.default_doc:
        assert parse(option, render(option, default)) == default
    assert allowed(option)


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Values of one kind, as they are after reading."""
    low = int(option.least) if option.least is not None else -(10**9)
    host_ports = st.builds("{}.example.org:{}".format, st.sampled_from("abc"), st.integers(1, 65535))
    paths = st.lists(st.text("abcZ0_é-", min_size=1), min_size=1).map(lambda parts: "/" + "/".join(parts))
    numbers = st.integers(0, 2**32 - 1) | st.integers(2**32, 2**128 - 1)
    addresses: st.SearchStrategy[Any] = numbers.map(ipaddress.ip_address)
    strategies: dict[object, st.SearchStrategy[Any]] = {
        Kind.INTEGER: st.integers(low, 10**9),
        Kind.TIME: st.integers(low, 10**11),
        Kind.COUNT_OR_BOOLEAN: st.integers(0, 10**9),
        Kind.NUMBER: st.floats(option.least, 10**9, allow_nan=False),
        Kind.BOOLEAN: st.booleans(),
        Kind.PATH: paths.map(Path),
        Kind.INNER_PATH: paths,
        Kind.NETWORKS: st.lists(addresses.map(ipaddress.ip_network), min_size=1).map(tuple),
        Kind.ADDRESSES: st.lists(addresses.map(str), min_size=1).map(tuple),
        Kind.PATHS: st.lists(paths, min_size=1).map(tuple),
        Kind.HOST_PORT: host_ports,
        Kind.HOST_PORTS: st.lists(host_ports, min_size=1).map(tuple),
        Kind.CAPABILITIES: st.lists(st.sampled_from(CAPABILITIES), unique=True).map(tuple),
    }
    return strategies[option.kind]


ROUND_TRIP = [
    Option(Kind.INTEGER, "", least=1),
    Option(Kind.INTEGER, ""),
    Option(Kind.TIME, "", least=0),
    Option(Kind.COUNT_OR_BOOLEAN, ""),
    Option(Kind.NUMBER, "", least=0),
    *(Option(kind, "") for kind in (Kind.BOOLEAN, Kind.PATH, Kind.INNER_PATH, Kind.NETWORKS, Kind.ADDRESSES)),
    *(Option(kind, "") for kind in (Kind.PATHS, Kind.HOST_PORT, Kind.HOST_PORTS, Kind.CAPABILITIES)),
]


@given(st.data(), st.sampled_from(ROUND_TRIP))
def test_what_is_written_is_read_as_it_was(data: st.DataObject, option: Option) -> None:
    value = data.draw(values_of(option))
    assert parse(option, render(option, value)) == value


@pytest.mark.filterwarnings(
    "ignore:Possible (nested|set):FutureWarning", "ignore:Flags not:DeprecationWarning"
)
@given(st.sampled_from(sorted(OPTIONS)), st.text())
def test_any_text_is_a_value_or_refused(name: str, text: str) -> None:
    option = OPTIONS[name]
    try:
        value = parse(option, text)
    except BadValue as error:
        assert "\n" not in str(error)
        return
    if value is not None:
        assert parse(option, render(option, value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.org:99", ("a.org", 99)), ("[::1]:9995", ("::1", 9995)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)
def test_host_and_port_are_told_apart(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text) == expected


def test_quoted_values_are_short_and_on_one_line() -> None:
    assert len(quoted("x\n" * 1000)) < 200
    assert "\n" not in quoted("x\n")


def test_every_model_can_be_chosen() -> None:
    assert {parse(OPTIONS["machinetype.machine_model"], model) for model in MODELS} == set(MODELS)
