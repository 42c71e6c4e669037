"""What is shipped to operate the server is well-formed by the programs that read it, and agrees with itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from benchmarks.dashboards.grafana import RUNBOOK
from server.http.body_budget import default_budget
from server.record.audit.sink import SinkError
from server.record.audit.sinks import make_sink
from server.settings.schema import Settings
from server.settings.sources import read_file
from tests.operating.programs import DOCKER, ROOT, program, run

RULES = DOCKER / "prometheus" / "rules.yml"
RULES_TESTS = ("rules_test.yml", "rules_days_test.yml")
COMPOSED = [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"], ["compose.yaml", "compose.vllm.yaml"]]
CRDS = Path(__file__).parent / "crds"
OPERATIONS = ROOT / "docs" / "operations.md"
SERVER_CLOSES_SECONDS = 5  # for last events, after the drain


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy.yaml").read_text()))


def manifest(kind: str) -> dict[str, Any]:
    return next(each for each in manifests() if each["kind"] == kind)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def resolved(*files: str, **variables: str) -> dict[str, Any]:
    """The services as Docker Compose itself understands them, with these variables set and no others of ours."""
    found = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    arguments = [part for file in files or ("compose.yaml",) for part in ("-f", str(DOCKER / file))]
    done = subprocess.run(
        [program("docker-compose"), *arguments, "config", "--format", "json"],
        env={**found, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def seconds(text: str) -> float:
    """Seconds of `50s`, `500ms`, `10m` or `32`."""
    match = re.fullmatch(r"(\d+)(ms|s|m|)", text)
    assert match is not None, text
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "": 1}[match[2]]


def directives(name: str) -> list[str]:
    """The values of an nginx directive."""
    return re.findall(rf"^\s*{name}\s+([^;]+);", (DOCKER / "nginx" / "nginx.conf").read_text(), re.MULTILINE)


def nginx(name: str) -> str:
    """The value of an nginx directive that is given once."""
    (value,) = directives(name)
    return value


def compose_settings() -> Settings:
    return Settings(**read_file(DOCKER / "settings" / "autosteer.yaml"))


def cluster_settings(folder: Path) -> Settings:
    file = folder / "autosteer.yaml"
    file.write_text(manifest("ConfigMap")["data"]["autosteer.yaml"])
    return Settings(**read_file(file))


# the programs that read the files ----------------------------------------------------------------------------------


def test_prometheus_takes_its_config_and_rules() -> None:
    run("promtool", "check", "config", "prometheus.yml", folder=DOCKER / "prometheus")
    run("promtool", "check", "rules", "--lint-fatal", "rules.yml", folder=DOCKER / "prometheus")


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    run("promtool", "test", "rules", *RULES_TESTS, folder=DOCKER / "prometheus")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [case for name in RULES_TESTS for case in yaml.safe_load((RULES.parent / name).read_text())["tests"]]
    tested = {(c["alertname"], bool(c.get("exp_alerts"))) for test in cases for c in test["alert_rule_test"]}
    assert tested == {(rule["alert"], fires) for rule in rules() if "alert" in rule for fires in (True, False)}


def test_alertmanager_takes_its_config() -> None:
    run("amtool", "check-config", DOCKER / "alertmanager" / "alertmanager.yml")


def test_nginx_takes_its_config(tmp_path: Path) -> None:
    """As it is shipped but for the certificate's folder and the two names, which only Docker's network knows."""
    subprocess.run([DOCKER / "nginx" / "certificate.sh"], env={"TLS_FOLDER": str(tmp_path)}, check=True)
    text = (DOCKER / "nginx" / "nginx.conf").read_text()
    for shipped, here in [
        ("/tmp/", f"{tmp_path}/"),  # first: the folder's own name may begin with it
        (" /tls/", f" {tmp_path}/"),
        ("server-a:", "127.0.0.1:"),
        ("server-b:", "127.0.0.1:"),
        ("/dev/stdout", f"{tmp_path}/access.log"),
    ]:
        assert shipped in text
        text = text.replace(shipped, here)
    (tmp_path / "nginx.conf").write_text(text)
    done = run("nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf")
    assert "warn" not in done.stderr, done.stderr


def test_a_certificate_that_is_there_is_kept(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("mine")
    subprocess.run([DOCKER / "nginx" / "certificate.sh"], env={"TLS_FOLDER": str(tmp_path)}, check=True)
    assert (tmp_path / "tls.key").read_text() == "mine"


def test_hadolint_finds_nothing() -> None:
    run("hadolint", DOCKER / "Dockerfile")


def test_the_install_script_is_a_posix_shell_script() -> None:
    for script in (DOCKER / "install.sh", DOCKER / "nginx" / "certificate.sh"):
        subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("files", COMPOSED)
def test_compose_takes_its_files(files: list[str]) -> None:
    """Docker Compose itself, which checks them against the compose specification's schema."""
    run("docker-compose", *[part for file in files for part in ("-f", DOCKER / file)], "config", "--quiet")


def test_compose_refuses_what_is_wrong(tmp_path: Path) -> None:
    """So that the test above says something."""
    text = (DOCKER / "compose.yaml").read_text()
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text.replace("read_only: true", "read_onyl: true"))
    done = subprocess.run([program("docker-compose"), "-f", wrong, "config", "-q"], capture_output=True, check=False)
    assert done.returncode != 0


def check(resource: dict[str, Any]) -> None:
    """Raises ValidationError."""
    schema = CRDS / f"{resource['kind'].lower()}.json"
    if schema.exists():
        jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(resource)
    else:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("resource", manifests(), ids=lambda each: each["kind"])
def test_kubernetes_takes_the_resource(resource: dict[str, Any]) -> None:
    check(resource)
    if "spec" in resource:
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check({**resource, "spec": {**resource["spec"], "replcas": 1}})


def test_all_that_was_asked_of_the_deployment_is_there() -> None:
    assert {each["kind"] for each in manifests()} >= {
        "Namespace", "ConfigMap", "Deployment", "Service", "HTTPRoute", "HorizontalPodAutoscaler",
        "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PrometheusRule",
    }  # fmt: skip


# what must agree ---------------------------------------------------------------------------------------------------


def test_both_places_have_the_same_rules() -> None:
    assert manifest("PrometheusRule")["spec"]["groups"] == yaml.safe_load(RULES.read_text())["groups"]


def test_every_alert_has_a_page_in_the_runbook() -> None:
    names = re.findall(r"^### (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    for rule in rules():
        if "alert" in rule:
            assert rule["alert"] in names
            assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_runbook_is_put_elsewhere_by_the_documented_command(tmp_path: Path) -> None:
    """In rules, their tests, dashboards and the manifests, and nothing else of them changes."""
    (command,) = re.findall(r"^grep -rl runbooks.*$", OPERATIONS.read_text(), re.MULTILINE)
    shutil.copytree(DOCKER, tmp_path / "docker")
    shutil.copy(ROOT / "deploy.yaml", tmp_path)
    files = [tmp_path / "deploy.yaml", *(each for each in (tmp_path / "docker").rglob("*") if each.is_file())]
    before = {file: file.read_text() for file in files}
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    (yours,) = re.findall(r"https://\S+#g'", command.partition("#")[2].partition("#")[2])
    here = RUNBOOK.removesuffix("/operations.md")
    changed = {file.name for file in files if file.read_text() != before[file]}
    assert changed == {"rules.yml", *RULES_TESTS, "guard.json", "serving.json", "deploy.yaml"}
    for file in files:
        assert file.read_text() == before[file].replace(here, yours.removesuffix("#g'"))
    run("promtool", "check", "rules", "--lint-fatal", "rules.yml", folder=tmp_path / "docker" / "prometheus")


def test_the_servers_take_their_settings(tmp_path: Path) -> None:
    assert cluster_settings(tmp_path).policy_names == ("default", "strict")
    audit = compose_settings().audit
    assert audit is not None
    try:
        make_sink(audit.model_copy(update={"url": type(audit.url)(f"file://{tmp_path}/audit.jsonl")}))
    except SinkError as error:
        pytest.fail(str(error))


def test_the_servers_on_vllm_take_theirs() -> None:
    service = resolved("compose.yaml", "compose.vllm.yaml", RANKS="2")["server-a"]
    given = {name.removeprefix("AUTOSTEER_").lower(): value for name, value in service["environment"].items()}
    del given["config"]
    settings = Settings(**{**read_file(DOCKER / "settings" / "autosteer.yaml"), **given})
    assert (settings.engine, settings.tensor_parallel) == ("vllm", 2)
    assert service["build"]["args"]["VARIANT"] == "vllm"


def test_the_gateway_waits_longer_than_the_server_and_takes_as_much() -> None:
    settings = compose_settings()
    assert nginx("client_max_body_size") == f"{settings.max_body_bytes // 2**20}m"
    assert max(seconds(each) for each in directives("proxy_read_timeout")) > settings.request_seconds
    assert seconds(nginx("send_timeout")) > settings.stall_seconds
    assert seconds(nginx("client_body_timeout")) >= settings.body_seconds
    assert settings.drain_seconds < seconds(nginx("worker_shutdown_timeout"))


def test_the_bodies_that_the_gateway_keeps_fit_into_its_memory() -> None:
    """Large ones as many as it takes at once; the rest of its file system is for those of under a megabyte."""
    (gateway,) = (each for name, each in resolved("compose.yaml").items() if name == "gateway")
    (tmpfs,) = gateway["tmpfs"]
    limits = dict(value.split() for value in directives("limit_conn"))
    large = int(limits["large_bodies"]) * int(nginx("client_max_body_size").removesuffix("m"))
    assert large + 2 * int(limits["connections"]) <= megabytes(tmpfs)
    assert int(limits["large_bodies_of_address"]) < int(limits["large_bodies"])


def test_the_servers_bodies_are_a_small_part_of_their_memory() -> None:
    settings = compose_settings()
    for name in ("server-a", "server-b"):
        memory = int(resolved("compose.yaml")[name]["mem_limit"])
        budget = default_budget(memory, settings.max_body_bytes)
        assert settings.body_memory_mib is None  # so that it follows SERVER_MEMORY
        assert 2 * settings.max_body_bytes <= budget <= memory // 8


def needed_to_stop(settings: Settings) -> float:
    flush = settings.audit.flush_seconds if settings.audit else 10.0
    return settings.drain_seconds + SERVER_CLOSES_SECONDS + flush


def test_nothing_is_killed_while_it_drains(tmp_path: Path) -> None:
    services = compose()["services"]
    for name in ("server-a", "server-b"):
        assert seconds(services[name]["stop_grace_period"]) > needed_to_stop(compose_settings())
    assert seconds(services["gateway"]["stop_grace_period"]) > seconds(nginx("worker_shutdown_timeout"))
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep[0] == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(sleep[1]) + needed_to_stop(cluster_settings(tmp_path))


def test_the_route_waits_longer_than_the_longest_answer(tmp_path: Path) -> None:
    (rule,) = manifest("HTTPRoute")["spec"]["rules"]
    longest = cluster_settings(tmp_path).request_seconds
    assert all(seconds(value) > longest for value in rule["timeouts"].values())
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1"]  # and so not /metrics


def test_the_probes_ask_the_right_routes() -> None:
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}


def test_every_container_is_confined() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_nothing_is_reached_from_other_machines_until_it_is_asked_for() -> None:
    """As shipped there are no keys, and everybody who reaches the gateway is served."""

    def addresses(services: dict[str, Any]) -> dict[str, str]:
        return {name: port["host_ip"] for name, each in services.items() for port in each.get("ports", [])}

    assert not compose_settings().keys
    for files in COMPOSED:
        found = addresses(resolved(*files))
        assert found == {"gateway": "127.0.0.1", "prometheus": "127.0.0.1", "grafana": "127.0.0.1"}
    opened = addresses(resolved(GATEWAY_ADDRESS="0.0.0.0"))
    assert opened == {"gateway": "0.0.0.0", "prometheus": "127.0.0.1", "grafana": "127.0.0.1"}


def test_every_container_starts_again_and_has_a_limit_of_memory() -> None:
    """Above what its file systems in memory may take, for they count."""
    for files in COMPOSED:
        for name, service in resolved(*files).items():
            assert service["restart"] == ("on-failure:3" if name == "certificate" else "unless-stopped"), name
            in_memory = sum(megabytes(each) for each in service.get("tmpfs", []))
            assert int(service["mem_limit"]) >= (in_memory + 100) * 2**20, name
    assert {int(resolved(SERVER_MEMORY="9g")[f"server-{name}"]["mem_limit"]) for name in "ab"} == {9 * 2**30}
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()


def megabytes(tmpfs: str) -> int:
    """MiB of `/tmp:mode=1777,size=2g`."""
    match = re.search(r"size=(\d+)([mg])", tmpfs)
    assert match is not None, tmpfs
    return int(match[1]) * {"m": 1, "g": 1024}[match[2]]


def test_what_is_mounted_from_here_are_folders() -> None:
    """A mount of a single file keeps the old one where `sed -i` or an editor put a new one in its place."""
    for name, service in resolved().items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).is_dir(), (name, volume["source"])
                assert volume["read_only"], (name, volume["source"])


def test_what_each_program_opens_is_in_a_folder_that_is_mounted() -> None:
    """The path of each in its container, and the file here that it leads to."""
    services = resolved()
    for name, path in {
        "server-a": services["server-a"]["environment"]["AUTOSTEER_CONFIG"],
        "server-b": services["server-b"]["environment"]["AUTOSTEER_CONFIG"],
        "certificate": services["certificate"]["entrypoint"][-1],
        "gateway": "/etc/nginx/nginx.conf",  # the image's default
        "prometheus": services["prometheus"]["command"][0].removeprefix("--config.file="),
        "alertmanager": services["alertmanager"]["command"][0].removeprefix("--config.file="),
        "grafana": services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"],
    }.items():
        mounts = {each["target"]: Path(each["source"]) for each in services[name]["volumes"] if each["type"] == "bind"}
        folder, _, file = path.rpartition("/")
        assert (mounts[folder] / file).is_file(), (name, path)
    for name in ("certificate", "gateway"):
        assert any(each["target"] == "/tls" for each in services[name]["volumes"]), name
    assert {Path(each).parent for each in directives("ssl_certificate") + directives("ssl_certificate_key")} == {
        Path("/tls")
    }


def test_no_package_registry_is_named() -> None:
    for file in [*DOCKER.rglob("*"), ROOT / "deploy.yaml", ROOT / ".ci" / "run"]:
        if file.is_file() and file.suffix != ".png":
            assert not re.search(r"pypi|download\.pytorch|deb\.debian|index-url=?\s*https?:", file.read_text()), file
