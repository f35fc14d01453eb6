"""Everything that can be wrong with a configuration, and in which words it is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vac.config.load import Configuration, ConfigurationError, load
from vac.host.facts import HostFacts

LoadText = Callable[[str], Configuration]
TYPE = (
    "[machinetype one]\ntarget_share = 1\nmachine_model = bubblewrap\nroot_image = /\nuser_data = user_data\n"
)
SPACE = "[settings]\nvac_space = vac01.example.org\n"


def errors_of(load_text: LoadText, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_text(text)
    return [f"[{problem.section}] {problem.option}: {problem.text}" for problem in caught.value.problems]


def warnings_of(configuration: Configuration) -> list[str]:
    return [f"[{warning.section}] {warning.option}: {warning.text}" for warning in configuration.warnings]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("draning = yes\n", "[settings] draning: is not an option of [settings], the nearest is draining"),
        ("target_share = 1\n", "it belongs in [machinetype NAME]"),
        ("zzzzzz = 1\n", "[settings] zzzzzz: is not an option of [settings]; it is ignored"),
        (
            "[machinetyp x]\na = 1\n",
            "[machinetyp x] : is not a section that Vac knows, the nearest is [machinetype NAME]",
        ),
        ("[setings]\na = 1\n", "the nearest is [settings]"),
        ("[default]\na = 1\n", "[default] : is not a section that Vac knows"),
        ("[DEFAULT]\nfizle_seconds = 1\n", "no section has this option, the nearest is fizzle_seconds"),
        ("[machinetype x]\ntarget_shar = 1\n", "the nearest is target_share"),
        ("[vmtype x]\ntarget_share = 1\n", "[vmtype x] : is deprecated; write [machinetype x]"),
        ("", "target_share: there is no machinetype with a target_share above 0: nothing will be created"),
        ("[machinetype x]\n", "target_share: no machinetype has a target_share above 0"),
    ],
)
def test_what_somebody_should_look_at_is_a_warning(load_text: LoadText, text: str, words: str) -> None:
    assert words in "\n".join(warnings_of(load_text(SPACE + text)))


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ("description = basement", ["description"]),
        ("gocdb_cert_file = /c\ngocdb_key_file = /k\ngocdb_url = https://gocdb.example.org", []),
        ("version_logger = 1", ["version_logger"]),
        ("version_logger_hostport = versions.example.org:8884", ["version_logger_hostport"]),
        ("version_logger = no\ngocdb_url = https://goc.egi.eu\ndescription =\ngocdb_sitename = SITE", []),
    ],
)
def test_options_that_nothing_uses_are_warned_about_if_they_ask_for_something(
    load_text: LoadText, lines: str, options: list[str]
) -> None:
    found = warnings_of(load_text(f"{SPACE}{lines}\n{TYPE}"))
    assert found == [f"[settings] {name}: has no effect in this version" for name in options]


@pytest.mark.parametrize("absent", [(), ("waitress",), ("prometheus_client", "waitress")])
def test_what_metrics_lack_is_told_once_they_are_asked_for(
    tmp_path: Path, host: HostFacts, absent: tuple[str, ...]
) -> None:
    host = dataclasses.replace(host, module_exists=lambda name: name not in absent)
    path = tmp_path / "site.conf"
    for lines, packages in (("", ()), ("metrics_listen = [::]:9995\n", absent)):
        path.write_text(f"{SPACE}{lines}{TYPE}")
        warnings = "\n".join(warnings_of(load([path], host)))
        for module in packages:
            assert f"python3-{module.replace('_', '-')}" in warnings
        assert ("no metrics and no status page" in warnings) == bool(packages)


@pytest.mark.parametrize(
    ("settings_lines", "lines", "words"),
    [
        ("processors_per_superslot = 8", "", "min_wallclock_seconds: equals max_wallclock_seconds (86400)"),
        ("processors_per_superslot = 8", "min_wallclock_seconds = 86400", "min_wallclock_seconds: equals"),
        ("", "min_wallclock_seconds = 86401", "86401 is more than max_wallclock_seconds (86400)"),
        ("", "min_processors = 2\nmax_processors = 2", "2 is more than processors_per_superslot (1)"),
        ("", "heartbeat_seconds = 60", "heartbeat_seconds: means nothing without heartbeat_file"),
        ("", "idle_seconds = 60", "idle_seconds: means nothing without idle_cpu_percent"),
        ("", "legacy_proxy = yes", "legacy_proxy: means nothing without user_data_proxy = yes"),
    ],
)
def test_machinetypes_that_make_little_sense_are_warned_about(
    load_text: LoadText, settings_lines: str, lines: str, words: str
) -> None:
    (warning,) = warnings_of(load_text(f"{SPACE}{settings_lines}\n{TYPE}{lines}\n"))
    assert warning.startswith("[machinetype one]")
    assert words in warning


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "total_processors = 65",
            "[settings] total_processors: 65 is more than the 64 logical processors of this host",
        ),
        ("factory_name = vac", "[settings] factory_name: 'vac' is not a fully qualified host name"),
        ("factory_name = -a-.example.org", "is not a fully qualified host name"),
        ("singularity_user = nosuch", "singularity_user: there is no account 'nosuch' on this host"),
        ("singularity_user = root", "singularity_user: 'root' is root; it has to be an unprivileged account"),
        ("singularity_user = toor", "'toor' is root"),
        ("slot_uids = 200000-200062", "200000-200062 has fewer than 64 uids, one for each slot"),
        ("slot_uids = 0-100", "'0-100' is not the first and the last uid, from 1000 on, with a hyphen"),
        ("cpu_total = many", "[settings] cpu_total: 'many' is not an integer"),
        ("vac_space =", "[settings] vac_space: is missing; it has to be set to a name of letters"),
        ("user_data_option_a-b = 1", "what follows user_data_option_ may hold only a-z, 0-9 and _"),
        ("machinefeatures_option_ = 1", "what follows machinefeatures_option_ may hold only"),
        ("user_data_file_x =", "user_data_file_x: '' is not a path"),
        (
            "[targetshares]\na = 1",
            "[targetshares] : is a section of Vac 1: write `target_share = …`",
        ),
        (
            "[factories]\nnames = a.b.c",
            "is a section of Vac 1: write the names as `factories = …` in [settings]",
        ),
        ("nonsense", "line 3: is neither a [section] nor option = value"),
    ],
)
def test_what_cannot_be_used_is_an_error(load_text: LoadText, lines: str, words: str) -> None:
    (error,) = errors_of(load_text, f"{SPACE}{lines}\n")
    assert words in error


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[machinetype A_b]\na = 1", "'a_b' is not a name of 1 to 100 characters of a-z, 0-9 and -"),
        ("[machinetype]\na = 1", "'' is not a name of 1 to 100 characters"),
        ("[vacuum_pipe ../x]", "'../x' is not a name"),
        (
            "[machinetype x]\nmin_processors = 2",
            "max_processors (1), its default, is below min_processors (2)",
        ),
        (
            "[machinetype x]\nmin_processors = 3\nmax_processors = 2",
            "max_processors (2) is below min_processors (3)",
        ),
        ("[vacuum_pipe x]\ntarget_share = 1", "vacuum_pipe_url: is missing; it has to be set to an http://"),
        (
            "[vacuum_pipe x]\nvacuum_pipe_url = http://h/\nbackoff_seconds = x",
            "[vacuum_pipe x] backoff_seconds: 'x' is not",
        ),
        (
            "[machinetype x]\ntarget_share = nan",
            "[machinetype x] target_share: 'nan' is not a number, 0 or more",
        ),
        ("[vacuum_pipe x]\nvacuum_pipe_url = x", "vacuum_pipe_url: 'x' is not an http:// or https:// URL"),
    ],
)
def test_what_is_wrong_in_a_machinetype_or_pipe_stops_it_alone(
    load_text: LoadText, lines: str, words: str
) -> None:
    configuration = load_text(f"{SPACE}{TYPE}{lines}\n")
    (error,) = configuration.errors
    assert words in f"[{error.section}] {error.option}: {error.text}"
    assert "one" in configuration.machinetypes
    assert configuration.pipes == {}
    assert set(configuration.unusable) == {"x"} & set(configuration.machinetypes)
    assert error.text in "".join(configuration.unusable.values()) or "x" not in configuration.machinetypes


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("volume_group = gone", "there is no LVM volume group 'gone'"),
        ("gocdb_cert_file = /c", "gocdb_cert_file: is set without gocdb_key_file"),
        ("gocdb_key_file = /c", "gocdb_key_file: is set without gocdb_cert_file"),
        (
            "disk_gb_per_processor = 20\n[machinetype x]\ndisk_gb_per_processor = 21",
            "21 is more than the 20 of [settings]",
        ),
        (
            "version_logger = never",
            "version_logger: 'never' is not an integer, or yes (1) or no (0); 0 is used",
        ),
        (
            "draining = maybe",
            "draining: 'maybe' is not yes or no (also true, false, on, off, 1, 0); no is used",
        ),
        ("gocdb_sitename = UKI NORTH", "'UKI NORTH' is not a name without blanks; it counts as unset"),
        ("forward_dev = eth 0", "'eth 0' is not a network interface's name; it counts as unset"),
        (
            "root_public_key = key",
            "'key' is not an absolute path; /root/.ssh/id_rsa.pub is used",
        ),
        ("processors_per_superslot = 0", "'0' is not an integer, 1 or more; 1 is used"),
        ("overload_per_processor = -1", "'-1' is not a number, 0 or more; 1.25 is used"),
        ("factories = . # b@d", "factories: '#' is not a host name, or '.' for this host; it is left out"),
        ("vacmon_hostport = a.org b.org:8884", "'a.org' is not HOST:PORT"),
        (
            "mb_per_machine = 2000",
            "mb_per_machine: is not an option of [settings], the nearest is mb_per_processor",
        ),
        ("hs06_per_machine = 10", "the nearest is hs06_per_processor"),
        ("cpu_totl = 10", "the nearest is total_processors"),
        ("factories = other.example.org", "this factory, vac-01.example.org, isn't among them"),
        ("description = 'a b'", "description: in line 3, the quotes around it are part of the value"),
        ("user_data_option_a = x # y", "user_data_option_a: in line 3, '#' begins no comment after a value"),
        (
            "description = a\n  [machinetype x]",
            "line 4: looks like a [section], but continues the value above",
        ),
        (
            "description = a\n  Cpu_Total: 5",
            "line 4: looks like the option cpu_total, but continues the value above",
        ),
        (
            "factories = .\n user_data_option_x=1",
            "line 4: looks like the option user_data_option_x, but continues",
        ),
    ],
)
def test_what_the_classic_takes_is_only_warned_about(load_text: LoadText, lines: str, words: str) -> None:
    configuration = load_text(f"{SPACE}{lines}\n{TYPE}")
    assert words in "\n".join(warnings_of(configuration))
    assert configuration.errors == ()
    assert "one" not in configuration.unusable


def test_a_missing_volume_group_stops_vms_alone(load_text: LoadText) -> None:
    text = f"{SPACE}volume_group = gone\n{TYPE}[machinetype vm]\nroot_image = a\nuser_data = b\n"
    assert list(load_text(text).unusable) == ["vm"]


@pytest.mark.parametrize(
    "lines",
    [
        "factories = vac_02.example.org .",
        "user_data_option_a = one\n  two # three\n  'x'",
        "description = a#b",
        "factories = .\n  other.example.org:1",
    ],
)
def test_what_is_right_is_not_warned_about(load_text: LoadText, lines: str) -> None:
    found = warnings_of(load_text(f"{SPACE}{lines}\n{TYPE}"))
    assert [
        text for text in found if "effect" not in text and "HOST" not in text and "left out" not in text
    ] == []


def test_localhost_as_the_kernels_name_is_warned_about(tmp_path: Path, host: HostFacts) -> None:
    path = tmp_path / "site.conf"
    path.write_text(SPACE + TYPE)
    found = load([path], dataclasses.replace(host, name="localhost.localdomain"))
    assert "names no host: set the host name, or factory_name" in "\n".join(warnings_of(found))


def test_all_problems_are_told_at_once_with_their_files(tmp_path: Path, host: HostFacts) -> None:
    first, second = tmp_path / "1.conf", tmp_path / "2.conf"
    first.write_text("[settings]\ntotal_processors = x\ndraning = no\n")
    second.write_text("[settings]\nbroken\n[machinetype a]\nmax_processors = 0\n")
    with pytest.raises(ConfigurationError) as caught:
        load([tmp_path], host)
    assert [(problem.file, problem.option) for problem in caught.value.problems] == [
        (str(second), "line 2"),
        (str(first), "total_processors"),
        (str(second), "max_processors"),
    ]
    assert (str(first), "draning") in [(warning.file, warning.option) for warning in caught.value.warnings]
    assert f"{first}: [settings] total_processors: 'x' is not an integer, 1 or more" in str(caught.value)


def test_settings_have_to_be_there(load_text: LoadText, tmp_path: Path, host: HostFacts) -> None:
    assert errors_of(load_text, TYPE) == ["[settings] : there is no such section"]
    with pytest.raises(ConfigurationError) as caught:
        load([tmp_path], host)
    assert [(problem.section, problem.text) for problem in caught.value.problems] == [
        ("settings", "there is no such section")
    ]


def test_an_empty_section_is_told_with_its_file(tmp_path: Path, host: HostFacts) -> None:
    (tmp_path / "1.conf").write_text("[settings]\n")
    (tmp_path / "2.conf").write_text("[vacuum_pipe x]\n")
    with pytest.raises(ConfigurationError) as caught:
        load([tmp_path], host)
    assert [(Path(problem.file).name, problem.option) for problem in caught.value.problems] == [
        ("1.conf", "vac_space"),
        ("2.conf", "vacuum_pipe_url"),
    ]


def test_an_empty_directory_is_named_as_where_settings_are_missing(tmp_path: Path, host: HostFacts) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load([tmp_path], host)
    assert caught.value.problems[0].file == str(tmp_path)


LINES = st.sampled_from(
    (
        *(
            "[settings]",
            "[machinetype a]",
            "[vmtype a]",
            "[vacuum_pipe p]",
            "[DEFAULT]",
            "[x",
            "[]",
            "= 1",
            "a",
            "rem x",
        ),
        *(
            "vac_space = a.b",
            "total_processors = 1",
            "cpu_total = x",
            "min_processors = 9",
            "target_share = inf",
            " more",
        ),
        *("machine_model = docker", "user_data_option_A = \xff", "user_data_file_b = b", "factories = a . b"),
        *(
            "container_capabilities = none",
            "vacuum_pipe_url = http://x",
            "accounting_fqan = a b",
            "image_signing_dn = (",
        ),
    )
)


@given(
    st.one_of(
        st.binary(),
        st.lists(st.one_of(LINES, st.text())).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")),
    )
)
@example(b"[settings]\nvac_space = a.b\n")
@example(b"[settings]\n[\n]\n[]\n[\n= \n")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_a_configuration_or_an_error_in_words(
    tmp_path: Path, host: HostFacts, content: bytes
) -> None:
    path = tmp_path / "site.conf"
    path.write_bytes(content)
    try:
        configuration = load([path], host)
    except ConfigurationError as error:
        assert all(problem.text for problem in error.problems)
        return
    assert configuration.settings.vac_space
