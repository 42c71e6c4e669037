"""The page and the example file about the settings say what the settings are."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from server.cli.main import app
from server.record.audit.record import AuditRecord
from server.settings.groups import is_one_value, nested_model
from server.settings.reference import reference
from server.settings.schema import Settings
from server.settings.sources import load_settings

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLE = DOCS / "autosteer.example.yaml"


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    page = (DOCS / "configuration.md").read_text()
    tables = page.partition("<!-- reference -->\n")[2].partition("<!-- end -->")[0]
    assert tables == reference(), "put what `autosteer config reference` prints between the marks"
    assert CliRunner().invoke(app, ["config", "reference"]).stdout == tables


def test_every_setting_is_described_and_in_the_tables() -> None:
    for name, setting in Settings.model_fields.items():
        assert setting.description, name
        assert f"| `{name}`" in reference()
        for inner, each in (model.model_fields if (model := nested_model(setting)) else {}).items():
            assert each.description, f"{name}.{inner}"
            assert f"| `{inner}`" in reference()


def test_the_page_tells_of_every_field_of_a_record() -> None:
    page = (DOCS / "configuration.md").read_text()
    assert [each.name for each in fields(AuditRecord) if f"`{each.name}`" not in page] == []


def test_every_single_setting_is_an_option() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).stdout
    for name, setting in Settings.model_fields.items():
        assert (f"--{name.replace('_', '-')} " in shown) == is_one_value(setting), name


def test_the_example_is_valid_and_what_it_says_is_meant() -> None:
    settings = load_settings({}, EXAMPLE).settings
    assert settings.policy("strict").refusal == "Please ask the service desk."
    assert settings.policy("research").tokens_per_minute is None
    assert settings.policy("research").requests_per_minute == settings.requests_per_minute == 600
    assert [key.policy for key in settings.keys] == ["strict", "research"]
    assert settings.audit is not None
    checked = CliRunner().invoke(app, ["config", "check", str(EXAMPLE), "--elsewhere"])
    assert checked.exit_code == 0, checked.output
    assert set(yaml.safe_load(EXAMPLE.read_text())) <= set(Settings.model_fields)


def test_what_the_example_leaves_out_in_comments_works_too(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("# model:", "model:").replace("# guard:", "guard:")
    (tmp_path / "all.yaml").write_text(text)
    assert load_settings({}, tmp_path / "all.yaml").settings.guard == "/guards/onevision-7b"
    checked = CliRunner().invoke(app, ["config", "check", str(tmp_path / "all.yaml"), "--elsewhere"])
    assert "not checked: guard: the bundle /guards/onevision-7b is not here" in checked.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("guard: /nowhere/bundle", "guard: the bundle /nowhere/bundle is not here"),
        ("model: /nowhere/model\nguard: none", "model: no such model folder: /nowhere/model"),
        ("model: models/demo/chekpoint\nguard: none", "model: no such model folder: models/demo/chekpoint"),
        ("shadow: {guard: /nowhere/other}", "shadow: the bundle /nowhere/other is not here"),
        ("audit: {url: file:///nowhere/audit.jsonl}", "audit: the folder /nowhere is not here"),
        ("audit: {url: sqlite:////nowhere/audit.db}", "audit: the folder /nowhere is not here"),
    ],
)
def test_what_serve_would_not_find_is_a_mistake_unless_it_is_elsewhere(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    checked = CliRunner().invoke(app, ["config", "check", str(tmp_path / "a.yaml")])
    assert (checked.exit_code, checked.stdout) == (2, "")
    assert f"autosteer: {told}\n" in checked.stderr
    elsewhere = CliRunner().invoke(app, ["config", "check", str(tmp_path / "a.yaml"), "--elsewhere"])
    assert elsewhere.exit_code == 0, elsewhere.output
    assert f"not checked: {told}\n" in elsewhere.stdout


@pytest.mark.parametrize(
    ("package", "text", "told"),
    [
        ("psycopg", "audit: {url: 'postgresql://u:SECRET@h/d'}", "install autosteer-server[postgresql]"),
        ("opentelemetry", "otlp_endpoint: http://h:4318", "install autosteer-server[otel]"),
    ],
)
def test_a_package_that_serve_would_lack_is_a_mistake(
    package: str, text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    (tmp_path / "a.yaml").write_text(text)
    checked = CliRunner().invoke(app, ["config", "check", str(tmp_path / "a.yaml")])
    assert (checked.exit_code, checked.stdout) == (2, "")
    assert told in checked.stderr
    assert "SECRET" not in checked.stderr
