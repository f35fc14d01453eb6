"""The command lines of bubblewrap and Apptainer machines."""

from __future__ import annotations

import csv
import dataclasses
import errno
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import MachineSpec
from vac.drivers.processes import apptainer, bubblewrap
from vac.drivers.processes.launch_plan import FEATURES
from vac.host.child_processes import run


def make_spec(site: Path, **options: Any) -> MachineSpec:
    """A machine whose directory and state_dir are below site."""
    directory = site / "state/machines/1_t_f1-00.example.com"
    for name in ("machinefeatures", "jobfeatures", "joboutputs", "mnt"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "user_data").touch()
    (directory / "user_data").chmod(0o755)
    machinetype = Machinetype("t", **{"machine_model": "bubblewrap", "root_image": "/", **options})
    settings = Settings(state_dir=site / "state")
    files = site / "state/machinetypes/t/files"
    return MachineSpec("f1-00.example.com", "u0", machinetype, settings, 1, 2**31, directory, files)


def make_tree(root: Path, *names: str) -> None:
    """Directories (ending in /), links (NAME -> TARGET) and executable files."""
    for name in names:
        place, arrow, target = name.partition(" -> ")
        path = root / place
        if arrow:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)


def command_line(spec: MachineSpec) -> list[str]:
    return bubblewrap.command_line(bubblewrap.plan(spec, "/usr/bin/bwrap", spec.mounts(FEATURES)))


def has(arguments: list[str], *wanted: str) -> bool:
    """Do these arguments follow each other?"""
    starts = range(len(arguments) - len(wanted) + 1)
    return any(tuple(arguments[start : start + len(wanted)]) == wanted for start in starts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tree(
        tmp_path / "image",
        "bin -> usr/bin",
        "usr/bin/sh",
        "dev/null",
        "proc/",
        "etc/passwd",
        "etc/ssl/cert",
        "tmp/",
        "var/tmp/",
        "var/lib/dpkg/",
        "home/",
    )
    return tmp_path / "image"


def test_namespaces_are_new_except_the_network(tmp_path: Path, root: Path) -> None:
    arguments = command_line(make_spec(tmp_path, root_image=str(root)))
    for kind in ("user", "pid", "ipc", "uts"):
        assert f"--unshare-{kind}" in arguments
    assert "--new-session" in arguments
    assert has(arguments, "--hostname", "f1-00.example.com")
    assert "--unshare-net" not in arguments
    assert "--die-with-parent" not in arguments, "machines outlive the factory"


def test_image_is_read_only_with_fresh_tmp_dev_and_proc(tmp_path: Path, root: Path) -> None:
    spec = make_spec(tmp_path, root_image=str(root))
    arguments = command_line(spec)
    assert has(arguments, "--ro-bind-try", f"{root}/usr", "/usr")
    assert has(arguments, "--symlink", "usr/bin", "/bin")
    assert has(arguments, "--bind", f"{spec.directory}/mnt/tmp", "/tmp")
    assert has(arguments, "--bind", f"{spec.directory}/mnt/var_tmp", "/var/tmp")
    assert has(arguments, "--dev", "/dev", "--proc", "/proc")
    for name in ("dev", "proc", "tmp"):
        assert not has(arguments, f"{root}/{name}", f"/{name}")
    assert has(arguments, "--remount-ro", "/", "--chdir", "/tmp", "--", "/user_data")
    writable = [arguments[index + 2] for index, each in enumerate(arguments) if each == "--bind"]
    assert sorted(writable) == ["/tmp", "/tmp/joboutputs", "/var/tmp"]


def test_machine_finds_what_the_platform_promises(tmp_path: Path, root: Path) -> None:
    spec = make_spec(
        tmp_path, root_image=str(root), cvmfs_repositories=("a.cern.ch",), token_dir=Path("/etc/tokens")
    )
    arguments = command_line(spec)
    assert has(arguments, "--ro-bind", f"{spec.directory}/user_data", "/user_data")
    assert has(arguments, "--ro-bind", f"{spec.directory}/machinefeatures", "/tmp/machinefeatures")
    assert has(arguments, "--ro-bind", f"{spec.directory}/jobfeatures", "/tmp/jobfeatures")
    assert has(arguments, "--bind", f"{spec.directory}/joboutputs", "/tmp/joboutputs")
    assert has(arguments, "--ro-bind", "/cvmfs", "/cvmfs")
    assert has(arguments, "--ro-bind", "/etc/tokens", "/etc/vac-tokens")


def test_only_directories_that_lack_a_mount_point_are_composed(tmp_path: Path, root: Path) -> None:
    arguments = command_line(
        make_spec(tmp_path, root_image=str(root), tmp_binds=("/scratch", "/var/lib/x/y"))
    )
    assert has(arguments, "--dir", "/var")
    assert has(arguments, "--dir", "/var/lib", "--ro-bind-try", f"{root}/var/lib/dpkg", "/var/lib/dpkg")
    assert has(arguments, "--ro-bind-try", f"{root}/etc", "/etc")
    for place in ("/scratch", "/var/lib/x/y"):
        assert place in arguments


def test_links_in_the_image_do_not_lead_mounts_astray(tmp_path: Path) -> None:
    root = tmp_path / "image"
    make_tree(root, "tmp -> /var/tmp", "var/tmp/joboutputs -> /etc", "etc/passwd")
    arguments = command_line(make_spec(tmp_path, root_image=str(root)))
    spec = make_spec(tmp_path)
    assert has(arguments, "--symlink", "/var/tmp", "/tmp")
    assert has(arguments, "--bind", f"{spec.directory}/joboutputs", "/var/tmp/joboutputs")


def test_circle_of_links_is_an_error(tmp_path: Path) -> None:
    make_tree(tmp_path / "image", "tmp -> /var/tmp", "var/tmp -> /tmp")
    with pytest.raises(ValueError, match="too many symbolic links in /tmp"):
        command_line(make_spec(tmp_path, root_image=str(tmp_path / "image")))


def test_host_tree_hides_what_machines_must_not_see(tmp_path: Path) -> None:
    arguments = command_line(make_spec(tmp_path))
    for place in ("/run", "/home", "/root"):
        assert has(arguments, "--tmpfs", place)
        assert has(arguments, "--remount-ro", place)
    spec = make_spec(Path("/opt"))
    plan = bubblewrap.plan(spec, "/usr/bin/bwrap", spec.mounts(FEATURES))
    assert ("blank", "", "/opt/state") in plan["mounts"]


def test_secrets_are_hidden_where_the_image_shows_them(tmp_path: Path) -> None:
    make_tree(tmp_path / "host", "bin/sh", "srv/tokens/a/token", "etc/vac.conf", "etc/passwd", "own/token")
    (tmp_path / "host/etc/site.conf").symlink_to("vac.conf")
    host = tmp_path / "host"
    hidden = tuple(host / name for name in ("srv/tokens/a", "etc/site.conf", "etc/none", "own"))
    hidden += (tmp_path / "elsewhere",)
    spec = dataclasses.replace(
        make_spec(tmp_path, root_image=str(host), token_dir=host / "own"), hidden=hidden
    )
    arguments = command_line(spec)
    assert has(arguments, "--tmpfs", "/srv/tokens/a")
    assert has(arguments, "--tmpfs", "/own")
    assert has(arguments, "--ro-bind", str(host / "own"), "/etc/vac-tokens")
    assert has(arguments, "--ro-bind-try", str(host / "etc/passwd"), "/etc/passwd")
    assert "/etc/vac.conf" not in arguments
    assert str(host / "etc") not in arguments
    assert not has(arguments, "--tmpfs", "/etc/none")


@pytest.mark.parametrize(
    ("root_image", "binds", "hidden"),
    [("site", (), True), ("site/state/machinetypes/t/files", (), False), ("site", ("/state",), False)],
)
def test_state_dir_is_hidden_wherever_the_image_shows_it(
    tmp_path: Path, root_image: str, binds: tuple[str, ...], hidden: bool
) -> None:
    spec = make_spec(tmp_path / "site", root_image=str(tmp_path / root_image), tmp_binds=binds)
    spec.files.mkdir(parents=True)
    arguments = command_line(spec)
    assert has(arguments, "--tmpfs", "/state") is hidden
    assert has(arguments, "--ro-bind-try", str(tmp_path / "site/state"), "/state") is False


@pytest.mark.parametrize("root_image", ["state", "state/machinetypes", "state/machines/x", "way/state/tmp"])
def test_an_image_in_what_machines_must_not_see_is_refused(tmp_path: Path, root_image: str) -> None:
    make_tree(tmp_path / "state", "machinetypes/u/usr/bin/sh", "machines/x/usr/bin/sh", "tmp/usr/bin/sh")
    (tmp_path / "way").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"is in .*/state, which machines must not see"):
        command_line(make_spec(tmp_path, root_image=str(tmp_path / root_image)))


@pytest.mark.parametrize("hidden", ["/run", "/home", "/root", "/etc/vac.d"])
def test_an_image_in_a_hidden_directory_of_the_host_is_refused(tmp_path: Path, hidden: str) -> None:
    plan = bubblewrap.plan(make_spec(tmp_path), "/usr/bin/bwrap", [])
    with pytest.raises(ValueError, match=f"is in {hidden}, which machines must not see"):
        bubblewrap.check_root(f"{hidden}/user", plan)


@pytest.mark.parametrize("model", [bubblewrap, apptainer])
def test_a_link_out_of_cvmfs_is_no_image(
    tmp_path: Path, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vac.host.filesystems.real_image.__defaults__", (str(tmp_path / "cvmfs"),))
    make_tree(tmp_path / "cvmfs/a", "tree/usr/bin/sh", "inner -> tree", "outer -> /", "up/x -> ../../..")
    inner = make_spec(tmp_path, root_image=f"{tmp_path}/cvmfs/a/inner")
    words = model.command_line(model.plan(inner, "", inner.mounts(FEATURES)))
    assert any(f"{tmp_path}/cvmfs/a/tree" in word for word in words)
    for name in ("outer", "outer/usr", "up/x"):
        outer = model.plan(make_spec(tmp_path, root_image=f"{tmp_path}/cvmfs/a/{name}"), "", [])
        with pytest.raises(ValueError, match="must not leave it"):
            model.command_line(outer)


def test_relative_root_image_is_below_the_types_files(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, root_image="tree")
    make_tree(spec.files / "tree", "usr/bin/sh")
    assert has(command_line(spec), "--ro-bind-try", f"{spec.files}/tree/usr", "/usr")


def test_resolver_files_of_the_host_replace_the_images_own(tmp_path: Path, root: Path) -> None:
    make_tree(root, "etc/resolv.conf")
    arguments = command_line(make_spec(tmp_path, root_image=str(root)))
    assert has(arguments, "--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf")
    assert "/etc/hosts" not in arguments, "where the image has none there is no place to mount it"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"root_image": "/etc/passwd"}, "root_image /etc/passwd is a file; bubblewrap takes"),
        ({"root_image": "/not/there"}, "root_image /not/there can't be found"),
        ({"container_command": "/not/there"}, "container_command /not/there does not exist in root_image /"),
        ({"container_command": "/etc"}, "container_command /etc is not a file that user"),
    ],
)
def test_what_cannot_work_has_one_clear_reason(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        command_line(make_spec(tmp_path, **options))


def test_user_data_that_is_not_there_is_told(tmp_path: Path, root: Path) -> None:
    spec = make_spec(tmp_path, root_image=str(root))
    (spec.directory / "user_data").unlink()
    with pytest.raises(ValueError, match="container_command /user_data does not exist"):
        command_line(spec)


def test_command_in_a_fresh_directory_is_left_to_bwrap(tmp_path: Path, root: Path) -> None:
    spec = make_spec(tmp_path, root_image=str(root), cvmfs_repositories=("a",))
    kind = dataclasses.replace(spec.machinetype, container_command="/cvmfs/a/run")
    assert command_line(dataclasses.replace(spec, machinetype=kind))[-1] == "/cvmfs/a/run"


OUTER = b"bwrap\0--unshare-user\0--\0/user_data\0"


@pytest.mark.parametrize(
    ("told", "others", "running"),
    [
        ({}, [], False),
        ({}, [b"/bin/sh\0/user_data\0"], False),
        ({"child-pid": 7}, [OUTER, OUTER, b""], False),
        ({"child-pid": 7}, [OUTER, b"/bin/sh\0/user_data\0"], True),
    ],
)
def test_machine_runs_once_something_else_than_bwrap_does(
    told: dict[str, int], others: list[bytes], running: bool
) -> None:
    assert bool(bubblewrap.command_pids(told, OUTER, dict(enumerate(others)))) is running


def test_what_a_dead_bwrap_has_left_waiting_is_no_machine(tmp_path: Path) -> None:
    own = b"\0".join(map(str.encode, command_line(make_spec(tmp_path))))
    assert not bubblewrap.command_pids({"child-pid": 7}, b"", {7: own})


KEYS = """
import ctypes
from vac.drivers.processes import launch
libc = ctypes.CDLL(None, use_errno=True)
number = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
def found():
    return libc.syscall(number(b"keyctl"), 10, -3, b"user", b"secret", 0) >= 0
libc.syscall(number(b"add_key"), b"user", b"secret", b"x", ctypes.c_size_t(1), -3)
print(ctypes.get_errno(), found())
launch.join_new_session_keyring()
print(found())
"""


@pytest.mark.allow_subprocess
def test_a_machine_has_no_keys_of_those_before() -> None:
    """Some kernels have no keys, and some containers don't let anybody use them."""
    done = run([sys.executable, "-c", KEYS], time_limit_seconds=60)
    assert not done.failure
    error, before, after = done.text.split()
    assert before == "True" or int(error) in (errno.ENOSYS, errno.EPERM)
    assert after == "False"


PARENT = b"Apptainer runtime parent: image.sif\0"
INIT = b"appinit\0\0\0\0"
FUSE = b"/usr/bin/squashfuse_ll\0-f\0-o\0allow_other,ro\0"
SCRIPT = b"/bin/sh\0/user_data\0"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "state/machinetypes/t/files/image").mkdir(parents=True)
    return tmp_path


def arguments(spec: MachineSpec) -> list[str]:
    return apptainer.command_line(apptainer.plan(spec, "/usr/bin/apptainer", spec.mounts(FEATURES)))


def mounts(words: list[str]) -> dict[str, tuple[str, bool]]:
    """Return binds by destination: the source, and True if it is read-only."""
    rows = csv.reader(word.partition("=")[2] for word in words if word.startswith("--mount="))
    found = {}
    for row in rows:
        fields = dict(entry.partition("=")[::2] for entry in row)
        assert fields["type"] == "bind"
        found[fields["destination"]] = fields["source"], "ro" in fields
    return found


def test_the_machine_gets_what_is_its_own(site: Path) -> None:
    options = {"tmp_binds": ("/scratch",), "cvmfs_repositories": ("a.b",), "token_dir": Path("/etc/t")}
    spec = make_spec(site, root_image="image", **options)
    words, own = arguments(spec), spec.directory
    assert has(words, "--hostname", spec.name)
    assert has(words, "--workdir", f"{own}/mnt")
    assert words[-2:] == [str(spec.files / "image"), "/user_data"]
    assert mounts(words) == {
        "/tmp/machinefeatures": (f"{own}/machinefeatures", True),
        "/tmp/jobfeatures": (f"{own}/jobfeatures", True),
        "/tmp/joboutputs": (f"{own}/joboutputs", False),
        "/user_data": (f"{own}/user_data", True),
        "/cvmfs": ("/cvmfs", True),
        "/etc/vac-tokens": ("/etc/t", True),
        "/scratch": (f"{own}/mnt/bind0", False),
    }


def test_user_data_that_is_not_there_is_not_bound(site: Path) -> None:
    spec = make_spec(site, root_image="image")
    (spec.directory / "user_data").unlink()
    assert "/user_data" not in mounts(arguments(spec))


def test_places_may_have_any_name(site: Path) -> None:
    places = ('/a,b"c', "/d:e", "/f,ro", "/-g")
    found = mounts(arguments(make_spec(site, root_image="image", tmp_binds=places)))
    assert set(places) <= set(found)
    assert not any(found[place][1] for place in places)


@pytest.mark.parametrize(
    "image", ["docker://a", "library://a", "oras://a", "shub://a", "instance://a", "x://"]
)
def test_an_image_with_a_scheme_is_a_path(site: Path, image: str) -> None:
    """The configuration refuses it; if it came so far, the program would still download nothing."""
    assert apptainer.plan(make_spec(site, root_image=image), "", [])["image"].startswith("/")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"root_image": "absent"}, r"files/absent can't be found"),
        ({"root_image": "/"}, "root_image / holds .*/state, which machines must not see"),
        ({"root_image": "../../.."}, "root_image .* holds .*/state, which machines must not see"),
    ],
)
def test_what_cannot_be_is_told(site: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        arguments(make_spec(site, **{"root_image": "image", **options}))


def test_a_state_dir_with_a_colon_or_comma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b/state/machinetypes/t/files/image").mkdir(parents=True)
    with pytest.raises(ValueError, match="needs a state_dir without : and ,"):
        arguments(make_spec(tmp_path / "a:b", root_image="image"))


@pytest.mark.parametrize(
    ("others", "runs"),
    [
        ([], False),
        ([PARENT], False),
        ([PARENT, PARENT, FUSE], False),
        ([PARENT, INIT], False),
        ([PARENT, INIT, FUSE, b"", INIT], False),
        ([PARENT, INIT, FUSE, SCRIPT], True),
        ([b"Singularity runtime parent\0", b"sinit\0", SCRIPT], True),
    ],
)
def test_it_runs_when_a_process_is_the_machines_own(others: list[bytes], runs: bool) -> None:
    assert bool(apptainer.command_pids({}, b"apptainer\0exec", dict(enumerate(others)))) is runs


@pytest.mark.parametrize(
    ("exit_code", "said", "ran"),
    [
        (0, "", True),
        (255, "", True),
        (1, "FATAL: the machine's own words", True),
        (255, "FATAL: stat /user_data: no such file or directory", False),
    ],
)
def test_an_ended_command_is_told_from_one_that_never_began(exit_code: int, said: str, ran: bool) -> None:
    assert apptainer.has_run({}, exit_code, said) is ran
