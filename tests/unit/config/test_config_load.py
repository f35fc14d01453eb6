"""Meaning of a whole configuration: defaults, spellings, sections, pipes, images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Callable

import pytest

from vac.config.checks import image_problem
from vac.config.load import Configuration, ConfigurationError, load
from vac.config.machinetype import CAPABILITIES, MODELS, Machinetype
from vac.host.facts import HostFacts

LoadText = Callable[[str], Configuration]
FIXTURE = Path(__file__).parents[2] / "data" / "fixture-vac.conf"
TYPE = (
    "[machinetype one]\ntarget_share = 1\nmachine_model = bubblewrap\nroot_image = /\nuser_data = user_data\n"
)
SPACE = "[settings]\nvac_space = vac01.example.org\n"


def warnings_of(configuration: Configuration) -> list[str]:
    return [f"[{warning.section}] {warning.option}: {warning.text}" for warning in configuration.warnings]


def test_a_classic_configuration_loads(host: HostFacts) -> None:
    configuration = load([FIXTURE], host)
    assert [Path(file).name for file in configuration.files] == ["fixture-vac.conf"]
    found = configuration.settings
    assert (found.vac_space, found.total_processors, found.hs06, found.fix_networking) == (
        "vac01.example.org",
        8,
        12.5,
        False,
    )
    assert found.factories == ("vac-85.example.org", "vac-01.example.org")
    assert [kind.target_share for kind in configuration.machinetypes.values()] == [1, 2, 3] * 3 + [1]
    docker = configuration.machinetypes["type-00"]
    assert (docker.machine_model, docker.root_image, docker.heartbeat_seconds) == (
        "docker",
        "docker://vac/busybox:test",
        600,
    )
    assert docker.machinegroup == "/vo0.example.org/Role=NULL/Capability=NULL"
    assert docker.min_wallclock_seconds == 86400
    assert sorted(configuration.unusable) == ["type-01", "type-04", "type-07"]


def test_defaults_are_worked_out(load_text: LoadText) -> None:
    configuration = load_text(SPACE + TYPE)
    found, kind = configuration.settings, configuration.machinetypes["one"]
    assert found.factory_name == "vac-01.example.org"
    assert found.factories == ("vac-01.example.org",)
    assert found.total_processors == found.host_processors == 64
    assert (found.volume_group, found.disk_gb_per_processor, found.shutdown_time) == (None, None, None)
    assert (kind.machinegroup, kind.min_wallclock_seconds, kind.machine_model) == ("one", 86400, "bubblewrap")
    assert kind.container_capabilities == CAPABILITIES
    assert configuration.warnings == ()
    assert configuration.unusable == {}


def test_factories_get_this_hosts_domain_and_include_this_one(load_text: LoadText) -> None:
    text = SPACE + "factories = VAC-03 . other.site.org vac-03.example.org\n"
    assert load_text(text).settings.factories == (
        "vac-03.example.org",
        "vac-01.example.org",
        "other.site.org",
    )
    named = load_text(text + "factory_name = F2.Demo.Test\n").settings
    assert named.factory_name == "f2.demo.test"
    assert named.factories == ("vac-03.demo.test", "f2.demo.test", "other.site.org", "vac-03.example.org")


@pytest.mark.parametrize("setting", ["shutdown_time", "disk_gb_per_processor"])
def test_nought_counts_as_unset(load_text: LoadText, setting: str) -> None:
    assert getattr(load_text(f"{SPACE}{setting} = 0\n").settings, setting) is None


def test_an_empty_value_takes_an_earlier_one_back(tmp_path: Path, host: HostFacts) -> None:
    (tmp_path / "1.conf").write_text(SPACE + "gocdb_sitename = A\nhealth_command = /bin/false\n")
    (tmp_path / "2.conf").write_text("[settings]\ngocdb_sitename =\nhealth_command = \n")
    found = load([tmp_path], host).settings
    assert (found.gocdb_sitename, found.health_command) == (None, None)


@pytest.mark.parametrize(
    ("section", "old", "new", "value"),
    [
        ("settings", "cpu_total", "total_processors", 3),
        ("settings", "overload_per_cpu", "overload_per_processor", 3),
        ("settings", "hs06_per_cpu", "hs06_per_processor", 3),
        ("settings", "mb_per_cpu", "mb_per_processor", 3),
        ("settings", "disk_gb_per_cpu", "disk_gb_per_processor", 3),
        ("settings", "scratch_gb", "disk_gb_per_processor", 3),
        ("settings", "cpu_per_machine", "processors_per_superslot", 3),
        ("settings", "vcpu_per_machine", "processors_per_superslot", 3),
        ("machinetype", "vm_model", "machine_model", "docker"),
        ("machinetype", "machineoutputs_days", "machines_dir_days", 3),
        ("machinetype", "cernvm_signing_dn", "image_signing_dn", "CN=x"),
    ],
)
def test_old_spellings_count_with_a_warning_and_yield_to_the_new_ones(
    load_text: LoadText, section: str, old: str, new: str, value: object
) -> None:
    def read(lines: str) -> tuple[object, list[str]]:
        body = SPACE + lines if section == "settings" else f"{SPACE}[machinetype one]\n{lines}"
        configuration = load_text(body)
        holder = configuration.settings if section == "settings" else configuration.machinetypes["one"]
        return getattr(holder, new), [text for text in warnings_of(configuration) if "deprecated" in text]

    found, (warning,) = read(f"{old} = {value}\n")
    assert found == value
    assert f"{old}: is deprecated; its name is now {new}" in warning
    other = "singularity" if new == "machine_model" else 7
    found, (warning,) = read(f"{new} = {other}\n{old} = {value}\n")
    assert str(found).startswith(str(other))
    assert "is ignored, since" in warning


@pytest.mark.parametrize(
    ("section", "line"),
    [
        *(
            ("settings", name)
            for name in ("domain_type", "total_machines", "delete_old_files", "log_machineoutputs")
        ),
        *(("settings", name) for name in ("user_data_proxy_cert", "user_data_proxy_key")),
        *(("machinetype one", name) for name in ("rootpublickey", "root_public_key", "user_data_proxy_cert")),
    ],
)
def test_removed_options_are_ignored_with_a_warning(load_text: LoadText, section: str, line: str) -> None:
    body = SPACE if section == "settings" else SPACE + TYPE
    assert f"[{section}] {line}: no longer means anything and is ignored" in "\n".join(
        warnings_of(load_text(f"{body}{line} = x\n"))
    )


def test_more_processors_than_there_are_can_be_assumed(tmp_path: Path, host: HostFacts) -> None:
    path = tmp_path / "site.conf"
    path.write_text(SPACE + "total_processors = 200\n")
    assumed = dataclasses.replace(host, processors=256, assumed=True)
    found = load([path], assumed).settings
    assert (found.total_processors, found.host_processors) == (200, 256)
    with pytest.raises(ConfigurationError, match="the 64 logical processors that VAC_ASSUME_PROCESSORS says"):
        load([path], dataclasses.replace(assumed, processors=64))
    with pytest.raises(ConfigurationError, match="environment: VAC_ASSUME_PROCESSORS: 'x' is"):
        load([path], dataclasses.replace(host, processors=256, problem="'x' is not an integer"))


def test_a_bare_host_name_needs_a_factory_name(tmp_path: Path, host: HostFacts) -> None:
    path = tmp_path / "site.conf"
    path.write_text(SPACE)
    bare = dataclasses.replace(host, name="node7")
    with pytest.raises(ConfigurationError, match="the kernel's host name; set factory_name"):
        load([path], bare)
    path.write_text(SPACE + "factory_name = node7.example.org")
    assert load([path], bare).settings.factory_name == "node7.example.org"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            "machine_model = singularity\nroot_image = /cvmfs/x\nuser_data = u",
            "needs singularity_user in [settings]",
        ),
        ("machine_model = docker\nuser_data = u", "machine_model = docker needs a root_image"),
        (
            "machine_model = bubblewrap\nroot_image = /",
            "container_command is /user_data, and there is no user_data",
        ),
        (
            "machine_model = docker\nroot_image = docker://a\nuser_data = u\nimage_signing_dn = /CN=a",
            "signatures of docker images (image_signing_dn) can't be checked",
        ),
        (
            "machine_model = singularity\nroot_image = /i\nuser_data = u\ntmp_binds = /x /var//tmp/ //dev",
            "/var/tmp, /dev of tmp_binds can't be fresh directories in a singularity machine",
        ),
        (
            "machine_model = singularity\nroot_image = /i\nuser_data = u\ntmp_binds = //proc/",
            "/proc of tmp_binds can't be fresh directories in a singularity machine",
        ),
        (
            "machine_model = docker\nroot_image = docker://a\nuser_data = u\ntmp_binds = /var/spool/joboutputs",
            "/var/spool/joboutputs of tmp_binds can't be",
        ),
        (
            "machine_model = bubblewrap\nroot_image = http://a/b\nuser_data = u",
            "bubblewrap takes paths only as root_image, not 'http://a/b'",
        ),
        (
            "machine_model = singularity\nroot_image = oras://a/b\nuser_data = u",
            "singularity takes http:// and https:// URLs and paths only as root_image, not 'oras://a/b'",
        ),
    ],
)
def test_a_machinetype_that_cannot_work_is_kept_apart_from_the_others(
    load_text: LoadText, lines: str, reason: str
) -> None:
    account = "" if "singularity_user" in reason else "singularity_user = vacuser\n"
    configuration = load_text(f"{SPACE}{account}{TYPE}[machinetype two]\n{lines}\n")
    assert reason in configuration.unusable["two"]
    assert configuration.warnings == ()
    configuration = load_text(f"{SPACE}{account}{TYPE}[machinetype two]\ntarget_share = 1\n{lines}\n")
    assert [warning.section for warning in configuration.warnings] == ["machinetype two"]
    assert list(configuration.unusable) == ["two"]


def test_singularity_types_work_with_an_account(load_text: LoadText) -> None:
    text = f"{SPACE}singularity_user = vacuser\n{TYPE}vm_model = docker\n".replace(
        "bubblewrap", "singularity"
    )
    assert load_text(text).unusable == {}


def test_vmtype_is_an_older_machinetype(load_text: LoadText) -> None:
    older = "[vmtype ONE]\ntarget_share = 9\nfizzle_seconds = 5\n[vmtype two]\nbackoff_seconds = 7\n"
    kinds = load_text(SPACE + TYPE + older).machinetypes
    assert (kinds["one"].target_share, kinds["one"].fizzle_seconds, kinds["two"].backoff_seconds) == (1, 5, 7)


def test_default_section_counts_everywhere_it_can(load_text: LoadText) -> None:
    common = "[DEFAULT]\nfizzle_seconds = 5\nvac_space = common.org\n"
    configuration = load_text(f"{common}{TYPE}[machinetype two]\nfizzle_seconds = 6\n[settings]\nx = 1\n")
    assert configuration.settings.vac_space == "common.org"
    assert [kind.fizzle_seconds for kind in configuration.machinetypes.values()] == [5, 6]
    assert [warning.option for warning in configuration.warnings] == ["x"]


def test_user_data_substitutions_of_a_machinetype_win_over_those_of_settings(load_text: LoadText) -> None:
    configuration = load_text(
        f"{SPACE}user_data_option_a = site\nuser_data_option_b = Site B;x\nuser_data_file_c = /c\n"
        f"machinefeatures_option_rack = R 7\n"
        f"{TYPE}user_data_option_a = type\nuser_data_option_c = own\nuser_data_file_b = b.txt\n"
    )
    kind = configuration.machinetypes["one"]
    assert kind.user_data_options == {"a": "type", "c": "own"}
    assert kind.user_data_files == {"b": "b.txt", "c": "/c"}
    assert configuration.settings.user_data_options == {"a": "site", "b": "Site B;x"}
    assert configuration.settings.machinefeatures_options == {"rack": "R 7"}


def test_secrets_are_not_in_the_repr(load_text: LoadText) -> None:
    configuration = load_text(f"{SPACE}user_data_option_a = hunter2\n{TYPE}user_data_option_b = hunter2\n")
    assert "hunter2" not in repr(configuration)


def test_disk_of_settings_is_every_types_unless_lowered(load_text: LoadText) -> None:
    text = f"{SPACE}disk_gb_per_processor = 20\n{TYPE}[machinetype two]\ndisk_gb_per_processor = 10\n"
    assert [kind.disk_gb_per_processor for kind in load_text(text).machinetypes.values()] == [20, 10]


def test_a_pipe_is_kept_with_its_overrides(load_text: LoadText) -> None:
    configuration = load_text(
        f"{SPACE}[vacuum_pipe LHCb]\nvacuum_pipe_url = https://x.org/p\n"
        f"target_share = 2\nbackoff_seconds = 5\n"
        f"container_network = none\nuser_data_option_a = b\nuser_data_file_c = d\n"
    )
    pipe = configuration.pipes["lhcb"]
    assert (pipe.name, pipe.vacuum_pipe_url, pipe.target_share) == ("lhcb", "https://x.org/p", 2)
    assert pipe.overrides == {"backoff_seconds": 5, "container_network": "none"}
    assert (pipe.user_data_options, pipe.user_data_files) == ({"a": "b"}, {"c": "d"})
    assert configuration.machinetypes == {}
    assert configuration.warnings == ()


def test_the_digest_follows_the_content(load_text: LoadText, host: HostFacts, tmp_path: Path) -> None:
    digests = [
        load_text(SPACE + rest).digest
        for rest in (
            "",
            "# words\n",
            TYPE,
            TYPE.replace("one", "two"),
            "draining = yes\n",
            "[machinetype empty]\n",
            "user_data_option_a = \udce8\n",
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 6
    (tmp_path / "site.conf").write_text(SPACE)
    assert load([tmp_path / "site.conf"], dataclasses.replace(host, processors=65)).digest != digests[0]


DIGEST = f"sha256:{'0a' * 32}"
NAMES = [
    *(
        "busybox",
        "vo/pilot",
        "vo/pilot:el9",
        "a_b/c__d/e-f--g.h:v1.2_3-X",
        "docker.io/library/busybox:stable",
    ),
    *(
        "localhost/x",
        "localhost:5000/x",
        "REGISTRY.example.org/vo/x",
        "r:5000/x:1",
        "[::1]:5000/x",
        "/vo/pilot/",
    ),
    *(f"vo/pilot@{DIGEST}", f"r.example.org/vo/pilot:1@{DIGEST}"),
]
NO_NAMES = [
    *(
        "",
        "A/B:bad:tag",
        "Vo/pilot",
        "vo/Pilot",
        "r.example.org/Vo/x",
        "vo//pilot",
        "vo/pilot:",
        "vo/pilot:-x",
    ),
    *(
        "vo/.pilot",
        "vo/pilot-",
        "a___b",
        "vo/pilot@sha256:12",
        f"vo/pilot@{DIGEST}:1",
        "vo/pi lot",
        "a" * 99 + "!",
    ),
]


def problem(model: str, image: str | None) -> str | None:
    return image_problem(Machinetype("t", machine_model=model, root_image=image))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_images_are_taken(name: str) -> None:
    assert problem("docker", f"docker://{name}") is None


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_of_an_image_is_told(name: str) -> None:
    assert "is not the name of an image" in (problem("docker", f"docker://{name}") or "")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("image", "models"),
    [
        ("docker://x", ("docker",)),
        ("https://example.org/x", ("docker", "singularity", "cernvm3", "cernvm4", "vm-raw")),
        ("oras://example.org/x", ()),
        ("file:///x", ()),
        ("/cvmfs/x.org/i", MODELS),
        ("image.tar", MODELS),
        (None, MODELS),
    ],
)
def test_each_model_takes_urls_of_its_own(model: str, image: str | None, models: tuple[str, ...]) -> None:
    found = problem(model, image)
    assert (found is None) == (model in models)
    assert found is None or f"{model} takes " in found


def test_a_password_is_not_told() -> None:
    assert "hunter2" not in (problem("bubblewrap", "https://me:hunter2@example.org/x") or "hunter2")
