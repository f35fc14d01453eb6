"""Every command of README and docs/ is run: here, or by a test that is named here."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, Command, blocks, commands, is_file, prose
from tests.engines.factory_fixture import factory_site
from tests.unit.state_dirs import new_machine, new_state
from tests.waiting import wait_for
from vac import daemon as vacd
from vac.accounting import gocdb
from vac.accounting.history import finish
from vac.cli import check_vacd
from vac.cli.main import COMMANDS, command_parser, main
from vac.clock import Moment
from vac.config.load import load
from vac.drivers.base import Usage
from vac.host import facts
from vac.machines import status as statuses
from vac.machines.machine import Machine, mark_started

TYPED = PAGES[:-1]
"""Pages with an administrator's commands; the last one's are for experiments' own programs."""
FAILED = "1f0e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
HERE = {
    "check-vacd": (0, "Factory + responder ok"),
    "check-vacd 600": (0, "Factory + responder ok"),
    "check-vacd -w 180 -c 600": (0, "machines=2"),
    "vac apel-bundle": (0, ""),
    "vac apel-republish 202611": (0, "records of 202611 copied"),
    "vac apel-sync": (0, ""),
    "vac config check": (0, "can be used"),
    "vac config options": (0, "machine_model"),
    "vac config show": (0, "vac01.example.org"),
    "vac completion": (0, "complete"),
    "vac doctor": (None, "state_dir"),
    "vac drain --until +2h": (0, "drains until"),
    "vac undrain": (0, "no longer drains"),
    "vac factories": (0, "node1"),
    "vac gocdb --dry-run": (0, "{"),
    "vac history": (0, "300 No shutdown message"),
    "vac history --failed": (0, FAILED),
    "vac history --failed --type lhcb-prod": (0, FAILED),
    "vac history --since 1d --json": (0, '"exit_code": 7'),
    f"vac logs {FAILED}": (0, "no such program"),
    f"vac logs {FAILED} pilot.log": (0, "the pilot's own log"),
    "vac logs node1-00": (0, "Hello from node1-00"),
    f"vac logs {FAILED} -n 1": (0, "no such program"),
    f"vac machine {FAILED}": (0, "exit code 7"),
    "vac machine node1-00": (0, "Running"),
    "vac machine node1-00 --json": (0, '"state": "Running"'),
    "vac machines": (0, "node1-01"),
    "vac -HJt 3 machines": (0, "node1-00"),
    "vac machines -t 3 --json": (0, "node1-00"),
    "vac machinetypes": (0, "lhcb-prod"),
    "vac machinetypes lhcb-prod": (0, "node1"),
    "vac pipe show lhcb": (0, "https://lhcb.example.org/vacuum.pipe"),
    "vac usage": (0, "lhcb-prod"),
    "vac usage --days 7 --by model --json": (0, '"bubblewrap"'),
    "vac usage --month 202611 --by fqan": (0, "/lhcb"),
    "vac user-data lhcb-prod": (0, "Hello from"),
    "vac why": (0, "hello: can be created"),
    "vac why hello": (0, "hello"),
    "vac why docker-example": (0, "docker-example"),
    "vac why lhcb-prod": (0, "failed"),
    "vac finish node1-00": (0, "asked to finish machine"),
    "vac destroy node1-01": (0, "asked to destroy machine"),
    "vacd --help": (0, "--role"),
}
"""Exit status (None: the host's matter) and a part of the output, in the site that `site` makes; in this order."""
ON_A_HOST = (
    "chmod",
    "cp",
    "openssl",
    "systemctl",
    "useradd",
    "usermod",
)
"""Programs whose lines are run, page by page, as root with an /etc of their own. systemctl enables units there, and
starts nothing: guest_systemd.py does."""
ORDERS, GUEST, TRY_DEB = "tests/engines/test_orders.py", "tests/engines/guest_systemd.py", "packaging/try_deb"
BUILDS = "tests/docs/test_builds.py"
ELSEWHERE = {
    "make demo": ("Makefile", "make demo && make $(if $(ALL),test,unit)"),
    "make unit": ("Makefile", "make demo && make $(if $(ALL),test,unit)"),
    "make fresh": (".ci/run", "make fresh RELEASE=bookworm"),
    "make test": (".ci/run", "exec make test"),
    "make deb": (BUILDS, '"deb"'),
    "make rpm": (BUILDS, '"rpm"'),
    "make site": ("tests/docs/test_site.py", '"make", "site"'),
    "make try-deb": ("Makefile", "tools/fresh $(RELEASE) env GUEST=$(GUEST) packaging/try_deb"),
    "make puppet": ("Makefile", "tools/fresh $(RELEASE) packaging/try_managed puppet"),
    "make ansible": ("Makefile", "tools/fresh $(RELEASE) packaging/try_managed ansible"),
    "make test-all": ("Makefile", 'pytest $(WORKERS) -m ""'),
    "make soak MINUTES=60 SEED=1": ("tests/faults/test_soak.py", "tests.faults.soak"),
    "make lock unit": ("Makefile", "tools/lock"),
    "make help": ("tests/docs/test_commands.py", '"make", "help"'),
    "uname -n": ("tests/docs/test_commands.py", '"uname", "-n"'),
    "/usr/bin/python3 -m venv /opt/vac && /opt/vac/bin/pip install '/path/to/this/clone[docker,metrics]'": (
        BUILDS,
        "Install with pip",
    ),
    "ln -s /opt/vac/bin/vac /opt/vac/bin/vacd /opt/vac/bin/check-vacd /usr/bin/": (
        BUILDS,
        "Install with pip",
    ),
    "/opt/vac/bin/vac completion >/usr/share/bash-completion/completions/vac": (BUILDS, "completions/vac"),
    "apt install ./build/deb/vac-factory_*_all.deb bubblewrap": (TRY_DEB, 'install "$package" bubblewrap'),
    "apt remove vac-factory": (TRY_DEB, "apt-get -qq --yes remove vac-factory"),
    "apt purge vac-factory": (TRY_DEB, "apt-get -qq --yes purge vac-factory"),
    "vacd --detach --log-dir /var/log --pid-file /run/vacd.pid": (
        "tests/faults/test_vacd.py",
        '"--detach", "--pid-file"',
    ),
    "kill $(cat /run/vacd.pid)": (TRY_DEB, "vacd_number=$(cat /run/vacd.pid)"),
    "kill -HUP": ("tests/faults/test_vacd.py", "SIGHUP"),
    "vacd --role factory": ("tests/engines/factory_fixture.py", '("--role", "factory")'),
    "vacd --role responder": ("tests/docs/test_commands.py", '"--role", "responder"'),
    "journalctl -u vacd": (GUEST, '"journalctl", "-u", "vacd"'),
    "systemctl enable --now vac-machines vacd": (GUEST, '"enable", "--now", "vac-machines", "vacd"'),
    "systemctl disable --now vacd vac-machines": (GUEST, '"disable", "--now", "vacd", "vac-machines"'),
    "systemctl restart vacd": (GUEST, '"restart", "vacd"'),
    "systemctl stop vacd": (GUEST, '"stop", "vacd"'),
    "systemctl enable --now vacd": ("tests/space/test_mixed_space.py", '"systemctl enable --now vacd"'),
    "systemctl disable --now vacd": ("tests/space/test_mixed_space.py", '"systemctl disable --now vacd"'),
    "umount /var/lib/vac": ("tests/engines/factory_fixture.py", '["umount", point]'),
    "touch /var/lib/vac/requests/remove-unknown": ("tests/unit/factory/test_truth.py", "remove_unknown"),
    'vac drain --reason "new kernel" --wait': (ORDERS, '"drain", "--wait"'),
    'vac drain --reboot --reason "new kernel"': ("tests/space/test_space.py", '"drain", "--reboot"'),
    "vac drain --reboot --at-most 2": ("tests/unit/cli/test_reboot.py", '"--reboot", "--at-most"'),
    "vac drain --wait": (ORDERS, '"drain", "--wait"'),
    "vac logs node1-00 -f": (ORDERS, "follow_console"),
    "vac exec node1-00": (ORDERS, '"exec"'),
    "vac exec node1-00 ps": (ORDERS, 'site.vac("exec"'),
    "vac gocdb": ("tests/unit/accounting/test_gocdb.py", '"gocdb"]) == 0'),
    "vac cernvm-signature /var/lib/images/ucernvm-prod.iso --dn '/CN=cvm-sign01\\.cern\\.ch$'": (
        "tests/unit/context/test_signatures.py",
        '"cernvm-signature"',
    ),
    "vac proxy-init -c CERT -k KEY": ("tests/unit/context/test_proxies.py", '"proxy-init", "-c"'),
    "vac squid-conf IN OUT": ("tests/classic/test_command_lines.py", '"squid-conf"'),
    "vac pipe check https://lhcb.example.org/vacuum.pipe": ("tests/unit/cli/test_pipe.py", '"pipe", "check"'),
    "vac config options --sample": ("tests/unit/config/test_config_command.py", '"options", "--sample"'),
    "vac simulate": ("tests/unit/simulate/test_scenario.py", '"simulate"'),
    "vac simulate --factories 3 --policy classic": (
        "tests/unit/simulate/test_scenario.py",
        '"--policy", "classic", "--factories", "3"',
    ),
    "vac --config site.conf simulate plan.ini": ("tests/unit/simulate/test_scenario.py", '"simulate"'),
    "vac simulate examples/simulate/days.ini --policy classic --json out.json --plot out.svg": (
        "tests/unit/simulate/test_scenario.py",
        '"--policy", "classic", "--factories", "3"',
    ),
}
"""File whose tests (or CI's steps) run it, and words of that file which do."""
NOT_TYPED = {"openssl verify": "Vac calls it"}
PROGRAMS = frozenset(
    {"vac", "vacd", "check-vacd", "make", "kill", "touch", "umount", *ON_A_HOST, "apt", "journalctl"}
)
CONFIGURATION = """
[settings]
vac_space = vac01.example.org
factory_name = node1.example.org
state_dir = {state}
vacquery_port = {port}
udp_timeout_seconds = 60
gocdb_sitename = EXAMPLE-SITE
hs06_per_processor = 12.5
gocdb_cert_file = /etc/grid-security/hostcert.pem
gocdb_key_file = /etc/grid-security/hostkey.pem
[machinetype lhcb-prod]
target_share = 3
machine_model = bubblewrap
root_image = /
user_data = {home}/hello.sh
accounting_fqan = /lhcb/Role=NULL/Capability=NULL
[machinetype hello]
target_share = 1
machine_model = bubblewrap
root_image = /
user_data = {home}/hello.sh
[machinetype docker-example]
machine_model = docker
root_image = docker://debian:12
user_data = {home}/hello.sh
[vacuum_pipe lhcb]
vacuum_pipe_url = https://lhcb.example.org/vacuum.pipe
target_share = 0
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def found() -> list[Command]:
    return [each for page in TYPED for each in commands(page, PROGRAMS)]


def words_of(text: str) -> set[tuple[str, ...]]:
    """The program with its sub-command, and these with each option: what a command has that others may have, too."""
    words = [word for word in re.split(r"[\s\[\]]+", text) if word]
    program, rest = words[0], [word for word in words[1:] if not word.isupper()]
    plain = [word for word in rest if not word.startswith("-")]
    options = {word.partition("=")[0] for word in rest if word.startswith("-")}
    if program == "vac":
        known = [word for word in plain if word in COMMANDS][:1]
        known += plain[plain.index(known[0]) + 1 :][:1] if known and known[0] in ("config", "pipe") else []
        begin = (program, *known)
    else:
        begin = (program, *plain[:1])
    return {begin, *((*begin, option) for option in options)}


RUN = {each for text in (*HERE, *ELSEWHERE) for each in words_of(text)}


def is_run(command: Command) -> bool:
    text = command.text
    if text in HERE or text in ELSEWHERE or text in NOT_TYPED:
        return True
    if text.split()[0] in ON_A_HOST and not command.inline:
        return True
    if text.startswith("apt install") and not command.inline:
        return True
    return command.inline and words_of(text) <= RUN


def test_no_command_is_left_that_nothing_runs() -> None:
    left = [f"{one.page}:{one.line}: {one.text}" for one in found() if not is_run(one)]
    assert left == [], "put them into HERE or, with the test that runs them, into ELSEWHERE"


def test_tests_that_are_named_have_the_command() -> None:
    left = {
        text: place for text, (place, words) in ELSEWHERE.items() if words not in (ROOT / place).read_text()
    }
    assert left == {}


def test_what_is_listed_here_is_in_the_documents() -> None:
    typed = {each for command in found() for each in words_of(command.text)}
    assert [text for text in (*HERE, *ELSEWHERE) if not words_of(text) & typed] == []


def test_make_has_the_targets() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^[a-z-]+", listed, re.M))
    named = {word for one in found() if one.text.startswith("make ") for word in one.text.split()[1:]}
    assert {word for word in named if "=" not in word} <= targets


def test_options_are_those_of_the_command() -> None:
    for command in found():
        words = words_of(command.text)
        base = min(words, key=len)
        if base[0] == "vac" and len(base) > 1:
            usage = command_parser(base[1]).format_help()
            for *_, option in words - {base}:
                letters = [f"-{letter}" for letter in option[1:]] if option[1] != "-" else [option]
                if base[1:] != ("machines",) or option != "-HJt":
                    assert (
                        all(each in usage for each in letters if option[1] == "-") or base[1] == "config"
                    ), command


def test_blocks_say_what_they_are() -> None:
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= set(LANGUAGES), page
        assert not re.search(r"\n\n    \S", "\n".join(prose(page))), f"{page}: a block without a fence"


def settings(tmp_path: Path) -> Path:
    path = tmp_path / "a.conf"
    path.write_text(
        "[settings]\nvac_space = vac01.example.org\nfactory_name = node1.example.org\nsingularity_user = nobody\n"
    )
    return path


CONFIGURATIONS = [block for page in PAGES for block in blocks(page) if block.language == "ini"]


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda block: f"{block.page}:{block.line}")
def test_configurations_can_be_used(block: Block, tmp_path: Path) -> None:
    common = settings(tmp_path)
    path = tmp_path / "b.conf"
    path.write_text(block.text.replace("singularity_user = vacmachine", "singularity_user = nobody"))
    configuration = load([common, path], facts.read())
    assert configuration.errors == ()
    assert [text for text in configuration.warnings if "unknown" in str(text)] == []
    assert not configuration.unusable


def test_the_catalogue_of_capacities_can_be_used(tmp_path: Path) -> None:
    page, state = ROOT / "docs" / "accounting.md", new_state(tmp_path)
    text = next(block.text for block in blocks(page) if block.language == "json")
    state.space_catalogue.write_text(text)
    assert gocdb.census(state, {}, 0.0) == {"node1.example.org": gocdb.Capacity(64, 64, 800)}


class Site:
    """A factory's files, as a daemon that has just been stopped leaves them, and a responder that answers from them."""

    def __init__(self, home: Path) -> None:
        self.state = new_state(home)
        self.config = home / "vac.conf"
        (home / "hello.sh").write_text(script())
        self.config.write_text(CONFIGURATION.format(state=self.state.root, port=free_port(), home=home))
        configuration = load([self.config], facts.read())
        self.settings, self.kind = configuration.settings, configuration.machinetypes["lhcb-prod"]
        now = time.time()
        failed = self._machine("node1-01", FAILED, now - 3600)
        (failed.directory / "console.log").write_text("no such program\n")
        (failed.directory / "joboutputs" / "pilot.log").write_text("the pilot's own log\n")
        end = Moment(now - 3590, now - 3590, "boot")
        finish(self.state, failed, Usage(1.0, exit_code=7, ended_time=end.unix), end, watched=True)
        for name in ("node1-00", "node1-01"):
            machine = self._machine(name, f"{name[-1]}b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b", now - 60)
            (machine.directory / "console.log").write_text(f"Hello from {name}\n")
        report = statuses.configured(configuration)
        statuses.write(self.state, replace(report, time=now, decision_time=now))
        statuses.write_counts(self.state, 2, 2, 2, 2, 25.0)
        statuses.touch_heartbeat(self.state, "factory", now)
        command = [sys.executable, "-m", "vac.daemon", "--role", "responder", "--config", str(self.config)]
        self.responder = subprocess.Popen(command, cwd=ROOT)

    def _machine(self, name: str, uuid: str, begin: float) -> Machine:
        machine = new_machine(
            self.state,
            self.kind,
            self.settings,
            name=f"{name}.example.org",
            uuid=uuid,
            now=begin,
            shutdown_time=int(begin) + 86400,
        )
        mark_started(self.state, machine, Moment(begin, begin, "boot"))
        return machine

    def run(self, text: str) -> int:
        """Run a command of the documents for this site; return its exit status."""
        program, *words = shlex.split(text)
        try:
            if program == "check-vacd":
                return check_vacd.main(["--state-dir", str(self.state.root), *words])
            if program == "vacd":
                return vacd.main(words)
            return main(["--config", str(self.config), *words])
        except SystemExit as left:
            return int(left.code or 0)


def script() -> str:
    """Return the tutorial's script."""
    return next(block.text for block in blocks(ROOT / "docs" / "tutorial.md") if is_file(block))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        wait_for((site.state.root / "responder.pid").exists, "the responder is there")
        yield site
    finally:
        site.responder.terminate()
        site.responder.wait()


@pytest.mark.parametrize("text", HERE)
def test_commands_do_what_is_said(text: str, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    status, words = HERE[text]
    found = site.run(text)
    out, err = capsys.readouterr()
    assert words in out + err
    assert status in (None, found), out + err


PRIVATE_ETC = """
mount --make-rprivate /
cp -a /etc "$1/etc"
for file in passwd group shadow gshadow subuid subgid; do
    [ ! -e "$1/etc/$file" ] || sed -i /^vac/d "$1/etc/$file"
done
mount --bind "$1/etc" /etc
mkdir -p /etc/apel /etc/systemd/system
cp systemd/* /etc/systemd/system/
"""


@pytest.mark.engine
@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_lines_for_a_host_work_in_order(page: Path, tmp_path: Path) -> None:
    """With an /etc that nobody else sees; accounts, keys and units are made in it."""
    lines = [
        one.text for one in commands(page, PROGRAMS) if not one.inline and one.text.split()[0] in ON_A_HOST
    ]
    lines = [line for line in lines if "/opt/vac" not in line]
    if not lines:
        return
    require_root()
    if not any(line.startswith("useradd") for line in lines):
        lines[:0] = ["useradd --system vac"]
    text = "set -eu\n" + PRIVATE_ETC + "set -x\n" + "\n".join(lines).replace(" --now", "")
    command = [require_tool("unshare"), "--mount", "sh", "-c", text, "sh", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "SYSTEMD_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.engine
@pytest.mark.slow
def test_packages_that_are_named_can_be_installed() -> None:
    lines = [one.text for one in found() if one.text.startswith("apt install") and "/" not in one.text]
    names = {name for line in lines for name in line.split()[2:]}
    assert "python3-docker" in names
    subprocess.run([require_tool("apt-get"), "--simulate", "--quiet", "install", *sorted(names)], check=True)


@pytest.mark.engine
def test_the_tutorial_is_true(tmp_path: Path) -> None:
    """Its first machinetype, with a real factory: machines run, one fails and is explained, the node drains."""
    page = ROOT / "docs" / "tutorial.md"
    configuration = next(block.text for block in blocks(page) if "[machinetype hello]" in block.text)
    with factory_site({}, processors=2, start=False, vacquery_port=free_port()) as site:
        home = site.config.parent
        hello = home / "hello.sh"
        hello.write_text(script().replace("sleep 20", "sleep 600"))
        text = configuration.replace("/etc/vac.d", str(home)).replace("vacmachine", "nobody")
        (home / "a.conf").write_text(text)
        (home / "vac.conf").rename(home / "z.conf")
        site.config, site.words = home, ()
        assert "can be used" in site.vac("config", "check").stdout
        site.start()
        site.wait_for(lambda: len(site.running()) == 2, "machines run")
        site.wait_for(lambda: site.vac("machines").stdout.count(" hello ") == 2, "both machines are shown")
        full = "no free processors: 2 of 2 are in use"
        site.wait_for(lambda: full in site.vac("why").stdout, "it is said that the node is full")
        name = site.running()[0].name
        site.wait_for(lambda: f"Hello from {name}" in site.vac("logs", name).stdout, "the script has begun")
        hello.write_text(script().replace("sleep 20", "exit 7"))
        other = site.running()[1].name
        assert site.vac("destroy", name).returncode == 0
        words = ("exit code 7", "held back here")
        site.wait_for(
            lambda: all(each in site.vac("why", "hello").stdout for each in words), "it is explained"
        )
        assert " 7 " in site.vac("history", "--failed").stdout
        site.vac("drain")
        assert site.vac("destroy", other).returncode == 0
        assert site.vac("drain", "--wait").returncode == 0
        assert site.running() == []
