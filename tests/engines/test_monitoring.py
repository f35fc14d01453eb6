"""The alert rules and the dashboard that are shipped, with a real Prometheus that scrapes a real factory."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_tool
from tests.docs.pages import ROOT, blocks
from tests.engines.factory_fixture import AT_ONCE, LOOK_SECONDS, Kind, factory_site
from tests.engines.test_page_process import free_port, get
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.engine
SHIPPED = Path(__file__).resolve().parents[2] / "packaging" / "monitoring"
RULES = SHIPPED / "vac.rules.yml"
NEEDS_HOURS = ("increase(", "rate(")
"""Queries with these have no answer after a few scrapes."""


def query(port: int, words: str) -> list[Any]:
    """Return what Prometheus answers to a query. It has to be a right one."""
    text = get(port, f"/api/v1/query?query={urllib.parse.quote(words)}")
    answer = json.loads(text or '{"status": "error"}')
    return answer["data"]["result"] if answer["status"] == "success" else []


def queries() -> dict[str, str]:
    """Return the dashboard's queries by their panels' titles, for all factories."""
    panels = json.loads((SHIPPED / "grafana-vac.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$instance", ".*")
        for panel in panels
        for target in panel["targets"]
    }


def test_alerts_and_dashboard_work_on_a_real_factory(tmp_path: Path) -> None:
    page, prometheus = free_port(), free_port()
    kinds = {"lasting": Kind("sleep 600"), "broken": Kind("exit 7")}
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{RULES}]\n"
        f"scrape_configs: [{{job_name: vac, static_configs: [{{targets: ['127.0.0.1:{page}']}}]}}]\n"
    )
    words = [
        *(
            require_tool("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={tmp_path}/data",
        ),
        *(f"--web.listen-address=127.0.0.1:{prometheus}", "--log.level=warn"),
    ]
    with factory_site(kinds, processors=2, start=False) as site:
        site.words = ()
        site.configure(
            kinds,
            machines_per_cycle=AT_ONCE,
            metrics_listen=f"127.0.0.1:{page}",
            vacquery_port=free_port(),
        )
        site.start()
        with subprocess.Popen(words) as server:
            try:
                site.wait_for(lambda: query(prometheus, "vac_machine_info"), "a machine is in Prometheus")
                site.wait_for(lambda: query(prometheus, "vac_machinetype_ends_total"), "ends are there")
                for panel, words_of_panel in queries().items():
                    found = get(prometheus, f"/api/v1/query?query={urllib.parse.quote(words_of_panel)}")
                    assert json.loads(found)["status"] == "success", panel
                    late = any(each in words_of_panel for each in NEEDS_HOURS)
                    assert json.loads(found)["data"]["result"] or late, panel
                site.wait_for(lambda: _health(prometheus) == {"ok"}, "all rules have been evaluated")
                assert query(prometheus, 'ALERTS{alertstate="firing"}') == []
                assert site.stop() == 0
                deadline = time.monotonic() + PATIENCE_SECONDS
                while "VacPageUnreachable" not in _alerts(prometheus):
                    assert time.monotonic() < deadline, "the factory is missed"
                    time.sleep(LOOK_SECONDS)
            finally:
                server.terminate()


def _rules(port: int) -> list[Any]:
    answer = json.loads(get(port, "/api/v1/rules") or '{"data": {"groups": []}}')
    return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


def _health(port: int) -> set[str]:
    return {rule["health"] for rule in _rules(port)}


def _alerts(port: int) -> set[str]:
    return {rule["name"] for rule in _rules(port) if rule["state"] in ("pending", "firing")}


def test_promtool_finds_no_fault_and_alerts_come_when_they_should(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    subprocess.run([promtool, "check", "rules", RULES], check=True, capture_output=True)
    documented = next(
        block.text for block in blocks(ROOT / "docs" / "monitoring.md") if block.language == "yaml"
    )
    (tmp_path / "prometheus.yml").write_text(documented)
    subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True
    )
    series = {
        'vac_factory_creation_blocked{instance="n1",reason="disk"}': "1x60",
        'vac_factory_creation_blocked{instance="n2",reason="full"}': "1x60",
        'vac_factory_creation_blocked{instance="n3",reason="draining"}': "1x60",
        'vac_engine_up{instance="n1",engine="docker"}': "0x60",
        'vac_machinetype_ends_total{instance="n1",machinetype="bad",code="300"}': "0+1x600",
        'vac_machinetype_ends_total{instance="n1",machinetype="bad",code="200"}': "0x600",
        'vac_machinetype_ends_total{instance="n1",machinetype="good",code="300"}': "0+1x600",
        'vac_machinetype_ends_total{instance="n1",machinetype="good",code="200"}': "0+2x600",
    }
    expected = {
        ("30m", "VacNothingCreated"): [{"instance": "n1", "reason": "disk", "severity": "critical"}],
        ("30m", "VacEngineDown"): [{"instance": "n1", "engine": "docker", "severity": "critical"}],
        ("30m", "VacOverloaded"): [],
        ("8h", "VacMachinesAbort"): [{"instance": "n1", "machinetype": "bad", "severity": "warning"}],
    }
    test = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": moment,
                        "alertname": name,
                        "exp_alerts": [
                            {"exp_labels": labels, "exp_annotations": _annotations(name)} for labels in alerts
                        ],
                    }
                    for (moment, name), alerts in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yml"], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _annotations(name: str) -> dict[str, str]:
    return {
        "VacNothingCreated": {
            "summary": "n1 creates nothing: disk",
            "description": "vac why on the node has the words.",
        },
        "VacEngineDown": {"summary": "Engine docker of n1 can't be used"},
        "VacMachinesAbort": {
            "summary": "Nearly all machines of bad end in aborts on n1",
            "description": "vac history --failed on the node tells how they ended.",
        },
    }[name]
