"""The manifests for Kubernetes: what its schemas say, what must agree, and the commands of docs/kubernetes.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from models import demo
from tests.end_to_end.commands import run as autosteer
from tests.end_to_end.processes import clean_environment
from tests.hub import hub
from tests.markdown import commands
from tests.operating.programs import ROOT
from tests.operating.test_shipped_files import CRDS, check

PAGE = ROOT / "docs" / "kubernetes.md"
SERVE, FIT = ROOT / "deploy.yaml", ROOT / "deploy-fit.yaml"
VERSIONS = ["1.25", "1.30", kubernetes_validate.latest_version()]
MODEL = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
# Stands in for these programs: files that they are told of must be there. `get pods` names two, `exec` reads its input.
KUBECTL = """#!/bin/sh
echo "kubectl $*" >>"$CALLS"
for word; do
    case "$before" in -f | --from-file) [ -f "$word" ] || { echo "no file $word" >&2; exit 1; } ;; esac
    before="$word"
done
case "$*" in *"get pods"*) printf 'pod/one\\npod/two\\n' ;; *"exec -i"*) cat >"$CALLS.stdin" ;; esac
"""


def resources(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def resource(kind: str, file: Path = SERVE) -> dict[str, Any]:
    return next(each for each in resources(file) if each["kind"] == kind)


def pod(kind: str = "Deployment", file: Path = SERVE) -> dict[str, Any]:
    template: dict[str, Any] = resource(kind, file)["spec"]["template"]
    return template


PLAIN = [
    each for file in (SERVE, FIT) for each in resources(file) if not (CRDS / f"{each['kind'].lower()}.json").exists()
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", PLAIN, ids=lambda each: each["kind"])
def test_every_supported_version_takes_the_resource(each: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


def test_the_oldest_version_is_the_one_that_is_named() -> None:
    assert f"{VERSIONS[0]} or newer" in PAGE.read_text()
    newer = {**resource("Deployment")}
    newer["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] = {"sleep": {"seconds": 5}}
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kubernetes_validate.validate(newer, VERSIONS[0], strict=True)


def test_the_job_is_checked_as_the_rest_is() -> None:
    job = resource("Job", FIT)
    check(job)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check({**job, "spec": {**job["spec"], "backofLimit": 1}})


def test_a_roll_needs_no_spare_gpu_and_takes_one_replica_at_a_time() -> None:
    roll = resource("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (roll["maxSurge"], roll["maxUnavailable"]) == (0, 1)
    assert resource("HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2


@pytest.mark.parametrize(("kind", "file"), [("Deployment", SERVE), ("Job", FIT)])
def test_pods_may_run_on_tainted_gpu_nodes_and_are_confined(kind: str, file: Path) -> None:
    spec = pod(kind, file)["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert spec["securityContext"]["runAsNonRoot"]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_kube_prometheus_stack_sees_what_it_should() -> None:
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert resource(kind)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_audit_database_can_be_reached_and_the_job_is_under_the_same_rules() -> None:
    policy = resource("NetworkPolicy")["spec"]
    assert 5432 in {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    (chosen,) = policy["podSelector"]["matchExpressions"]
    labels = [pod(kind, file)["metadata"]["labels"] for kind, file in (("Deployment", SERVE), ("Job", FIT))]
    assert [each[chosen["key"]] in chosen["values"] for each in labels] == [True, True]


def test_job_and_servers_share_the_volume() -> None:
    for spec in (pod()["spec"], pod("Job", FIT)["spec"]):
        (claim,) = [each["persistentVolumeClaim"] for each in spec["volumes"] if "persistentVolumeClaim" in each]
        assert claim["claimName"] == resource("PersistentVolumeClaim")["metadata"]["name"]
    (fit,) = pod("Job", FIT)["spec"]["containers"]
    out = next(each.removeprefix("--out=") for each in fit["args"] if each.startswith("--out="))
    assert f"# guard: {out} " in SERVE.read_text()
    assert f"# model: {MODEL}\n" in SERVE.read_text()


def test_the_job_fetches_what_is_loaded_once_and_the_rest_needs_no_hub(tmp_path: Path) -> None:
    """Its own command, for a hub that has the demo model under that name."""
    (fetch,) = pod("Job", FIT)["spec"]["initContainers"]
    words: list[str] = fetch["command"] + fetch["args"]
    environment = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    with hub(demo.CHECKPOINT, MODEL) as source:
        source.go_on.set()
        subprocess.run(
            [Path(sys.executable).with_name(words[0]), *words[1:]],
            env=clean_environment({**environment, "HF_ENDPOINT": source.url}), check=True, capture_output=True,
        )  # fmt: skip
    fetched = {file.name for file in tmp_path.rglob("snapshots/*/*")}
    assert fetched == {file.name for file in demo.CHECKPOINT.iterdir()}


def test_the_job_fits_with_options_that_there_are(tmp_path: Path) -> None:
    (fit,) = pod("Job", FIT)["spec"]["containers"]
    told = autosteer(*(each.replace("/models/", f"{tmp_path}/") for each in fit["args"]))
    assert told.returncode == 2
    assert "pairs.jsonl" in told.stderr  # which is not there; the options were taken


# the page's commands -----------------------------------------------------------------------------------------------


def in_shell(folder: Path, block: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-euc", block],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the page's commands name, in a folder where they may change it."""
    for name in ("deploy.yaml", "deploy-fit.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    (tmp_path / "keys.json").write_text("[]")
    (tmp_path / "pairs.jsonl").write_text('{"toxic": "...", "safe": "..."}\n')
    return tmp_path


def test_every_command_of_the_page_runs_as_far_as_there_is_no_cluster(checkout: Path) -> None:
    programs = checkout / "bin"
    programs.mkdir()
    for name in ("kubectl", "docker", "helm"):
        (programs / name).write_text(KUBECTL)
        (programs / name).chmod(0o755)
    calls = checkout / "calls"
    environment = {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "CALLS": str(calls)}
    blocks = [block.text for block in commands(PAGE)]
    for block in blocks:
        done = in_shell(checkout, block, environment)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    assert len(blocks) >= 7
    assert (checkout / "calls.stdin").read_text() == (checkout / "pairs.jsonl").read_text()
    reloaded = [line for line in calls.read_text().splitlines() if line.endswith("sh -c kill -HUP 1")]
    assert [re.findall(r"pod/\w+", line) for line in reloaded] == [["pod/one"], ["pod/two"]]


def test_other_settings_have_another_checksum_by_the_pages_command(checkout: Path) -> None:
    (block,) = [each.text for each in commands(PAGE) if each.text.startswith("sum=")]
    lines = "\n".join(line for line in block.splitlines() if "kubectl" not in line)
    file = checkout / "deploy.yaml"

    def checksum() -> str:
        assert in_shell(checkout, lines, {}).returncode == 0
        found: str = pod(file=file)["metadata"]["annotations"]["checksum/config"]
        return found

    committed = pod()["metadata"]["annotations"]["checksum/config"]
    assert checksum() == committed
    file.write_text(file.read_text().replace("max_queue: 256", "max_queue: 128"))
    assert checksum() != committed
    file.write_text(file.read_text().replace("minReplicas: 2", "minReplicas: 3"))
    changed = checksum()
    file.write_text(file.read_text().replace("minReplicas: 3", "minReplicas: 2"))
    assert checksum() == changed  # of the settings alone
