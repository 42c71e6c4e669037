"""Settings from command line, environment and file: which wins, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.settings.schema import Settings
from server.settings.sources import ConfigError, load_settings
from steering.policy import Mode

HASH = "sha256:" + "a" * 64


def written(folder: Path, text: str, name: str = "autosteer.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(folder: Path, text: str, name: str = "autosteer.yaml", **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(options, written(folder, text, name))
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_command_line_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSTEER_MAX_ROWS", "2")
    monkeypatch.setenv("AUTOSTEER_MAX_QUEUE", "2")
    monkeypatch.setenv("AUTOSTEER_PORT", "2")
    monkeypatch.setenv("AUTOSTEER_EPS", "")
    file = written(tmp_path, "max_rows: 3\nmax_queue: 3\nport: 3\nmax_images: 3\n")
    loaded = load_settings({"max_rows": "1"}, file)
    settings = loaded.settings
    got = (settings.max_rows, settings.max_queue, settings.port, settings.max_images, settings.eps)
    assert got == (1, 2, 2, 3, None)
    assert [loaded.origin(name) for name in ("max_rows", "max_queue", "port", "max_images", "eps")] == [
        "--max-rows",
        "environment AUTOSTEER_MAX_QUEUE",
        "environment AUTOSTEER_PORT",
        str(file),
        "default",
    ]


def test_a_setting_of_earlier_versions_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "prefill_slowdown is a setting no more: set max_gap_ms"
    assert problems(tmp_path, "prefill_slowdown: 2.0")[0].startswith(told)
    with pytest.raises(ConfigError, match=told + r".*\(--prefill-slowdown\)"):
        load_settings({"prefill_slowdown": "2"})
    monkeypatch.setenv("AUTOSTEER_PREFILL_SLOWDOWN", "2")
    with pytest.raises(ConfigError, match="AUTOSTEER_PREFILL_SLOWDOWN is a setting no more: set max_gap_ms"):
        load_settings({})


def test_only_names_with_the_prefix_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """conda and some shells export HOST; PORT and MODEL are other programs' too."""
    for name in ("HOST", "PORT", "MODEL", "GUARD", "MODE", "KEYS"):
        monkeypatch.setenv(name, "x86_64-conda-linux-gnu")
    assert load_settings({}).settings == Settings()


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOSTEER_CONFIG", str(written(tmp_path, 'mode = "off"\n', "a.toml")))
    assert load_settings({}).settings.mode is Mode.OFF
    assert load_settings({}, written(tmp_path, "mode: block")).settings.mode is Mode.BLOCK


def test_yaml_off_is_a_word_and_true_is_not(tmp_path: Path) -> None:
    settings = load_settings({}, written(tmp_path, "mode: off\nmay_loosen: true\nrefusal: yes\n")).settings
    assert (settings.mode, settings.may_loosen, settings.refusal) == (Mode.OFF, True, "yes")


def test_mappings_are_joined_over_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOSTEER_AUDIT__URL", "file:///var/log/a.jsonl")
    file = written(tmp_path, "audit: {on_failure: refuse, url: 'file:///b'}\n")
    loaded = load_settings({}, file)
    assert loaded.settings.audit is not None
    assert loaded.settings.audit.url.get_secret_value() == "file:///var/log/a.jsonl"
    assert loaded.settings.audit.on_failure == "refuse"
    assert loaded.origin("audit") == f"environment AUTOSTEER_AUDIT and {file}"


def test_a_threshold_replaces_a_target_from_below(tmp_path: Path) -> None:
    settings = load_settings({"threshold": "0.7"}, written(tmp_path, "target_fpr: 0.01")).settings
    assert (settings.threshold, settings.target_fpr) == (0.7, None)
    settings = load_settings({"target_fpr": "0.05"}, written(tmp_path, "threshold: 0.5")).settings
    assert (settings.threshold, settings.target_fpr) == (None, 0.05)


def test_a_named_policy_begins_with_what_the_top_level_says(tmp_path: Path) -> None:
    text = """
        threshold: 0.5
        may_loosen: true
        tokens_per_minute: 100
        policies:
          strict: {mode: block, target_fpr: 0.05, may_loosen: false}
          free: {tokens_per_minute: null}
    """
    settings = load_settings({}, written(tmp_path, text)).settings
    strict, free = settings.policy("strict"), settings.policy("free")
    assert (strict.mode, strict.threshold, strict.target_fpr, strict.may_loosen) == (Mode.BLOCK, None, 0.05, False)
    assert (strict.tokens_per_minute, free.tokens_per_minute, free.threshold) == (100, None, 0.5)
    assert settings.policy("default").threshold == 0.5


ENTRY = f"name: a, hash: '{HASH}'"
WRONG = {
    "threshold: 7": ["threshold", "less than or equal to 1", "not 7", "autosteer.yaml"],
    "polcies: {}": ["polcies is no setting, did you mean policies?"],
    "policies: {strict: {treshold: 0.5}}": ["policies.strict.treshold", "did you mean threshold?"],
    "policies: {strict: {threshold: 0.5, target_fpr: 0.01}}": ["policies.strict", "exclude each other"],
    "policies: {default: {}}": ["policies.default", "top level"],
    "policies: {'a b': {}}": ["policies.a b", "at most 64 letters, digits, dots, dashes and underscores"],
    "policies: {a: {eps: 0}}": ["policies.a.eps", "greater than 0", "not 0"],
    "policies: {a: {eps: .inf}}": ["policies.a.eps", "finite"],
    "policies: {a: {requests_per_minute: 0}}": ["policies.a.requests_per_minute", "not 0"],
    f"keys: [{{{ENTRY}, policy: none}}]": ["keys.0.policy", "'none'", "there are default"],
    f"keys: [{{{ENTRY}}}, {{{ENTRY}}}]": ["keys.1.name", "keys.0"],
    f"keys: [{{{ENTRY}}}, {{name: b, hash: '{HASH}'}}]": ["keys.1.hash", "keys.0"],
    "keys: [{name: a}]": ["keys.0.hash", "is missing, and must be given"],
    "keys: 5": ["keys", "list"],
    "mode: shout": ["mode", "must be 'off', 'monitor', 'steer' or 'block'", "'shout'"],
    "mode: off\nmode: steer": ["line 2", "'mode' is given twice"],
    "a: [": ["is not YAML"],
    "[1]": ["mapping"],
    "threshold: 0.5\ntarget_fpr: 0.01": ["exclude each other"],
    "audit: {url: 'mysql://x'}": ["audit.url", "file:///", "mysql"],
    "audit: {url: 'file://host/x'}": ["audit.url", "absolute path"],
    "audit: {url: 'sqlite://'}": ["audit.url", "sqlite:///"],
    "audit: {}": ["audit.url", "is missing, and must be given"],
    "audit: {url: 'file:///a', on_failure: panic}": ["audit.on_failure", "'serve' or 'refuse'", "'panic'"],
    "": ["is empty"],
    "mode steer": ["must be a mapping of setting: value"],
    "\tmode: steer": ["line 1", "'\\t'"],
    "mode: steer\n  target_fpr: 0.01": ["line 2", "mapping values are not allowed here"],
    "port: eight": ["port", "must be a valid integer", "'eight'"],
    "port: 80000": ["port", "must be less than or equal to 65535"],
    "dtype: float8": ["dtype", "'auto', 'float32', 'bfloat16' or 'float16'"],
    "device: gpu": ["device", "must be auto, cpu, cuda, cuda:0, mps or xpu"],
    "otlp_endpoint: collector": ["otlp_endpoint", "must be a URL such as http://collector:4318"],
    "loosens: true": ["loosens", "must be a valid string"],
    "loosens: all": ["loosens", "that a refused reload names"],
    "policies: [strict]": ["policies", "must hold settings of its own, each as name: value"],
    "policies: {strict: block}": ["policies.strict", "must hold settings of its own, each as name: value"],
    "media: {alowed_domains: [x.org]}": ["media.alowed_domains", "did you mean allowed_domains?"],
    "media: {allowed_domains: ['https://x.org']}": ["media.allowed_domains", "without https://"],
    "media: {allowed_domains: x.org}": ["media.allowed_domains", "must be a list"],
    "body_memory_mib: 1": ["body_memory_mib", "it must be twice as much"],
    "engine: tgi": ["engine", "'own' or 'vllm'"],
    "engine: vllm\nmax_gap_ms: 300": ["max_gap_ms", "the vllm engine has no such thing"],
    "engine: vllm\nquantize: int8": ["quantize"],
    "tensor_parallel: 2": ["tensor_parallel", "set engine: vllm"],
    "engine: vllm\nshadow: {threshold: 0.5}": ["shadow"],
    "shadow: {threshold: 0.5, target_fpr: 0.01}": ["shadow", "exclude each other; give one of them"],
}


@pytest.mark.parametrize(("text", "words"), WRONG.items(), ids=list(WRONG))
def test_a_wrong_file_names_the_field_the_value_and_the_way_out(tmp_path: Path, text: str, words: list[str]) -> None:
    told = " | ".join(problems(tmp_path, text))
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize(
    "text",
    [
        "keys: [{name: a, hash: sk-autosteer-SECRET}]",
        f"keys: [{{{ENTRY}, key: sk-autosteer-SECRET}}]",
        "keys: [{name: sk-autosteer-SECRET~, hash: 5}]",
        "keys: sk-autosteer-SECRET",
        "keys: [sk-autosteer-SECRET",
        "audit: 'postgresql://u:SECRET@host/d'",
        "audit: {url: 'mysql://u:SECRET@host/d'}",
    ],
)
def test_no_message_repeats_a_secret(tmp_path: Path, text: str) -> None:
    assert "SECRET" not in " ".join(problems(tmp_path, text))


def test_every_problem_is_told(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "threshold: 7\nmax_images: x\nnope: 1")) == 3


def test_options_and_variables_are_named_as_they_were_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "(--max-rows)" in problems(tmp_path, "max_queue: 1", max_rows="none")[0]
    monkeypatch.setenv("AUTOSTEER_MAX_IMAGES", "-1")
    assert "(environment AUTOSTEER_MAX_IMAGES)" in problems(tmp_path, "max_queue: 1")[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUTOSTEER_TRESHOLD", "0.5", "did you mean AUTOSTEER_THRESHOLD?"),
        ("AUTOSTEER_KEYS", "sk-SECRET", "AUTOSTEER_KEYS: must be JSON"),
    ],
)
def test_a_wrong_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    told = problems(tmp_path, "")[0]
    assert words in told
    assert "SECRET" not in told


def test_the_links_that_kubernetes_sets_are_nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"AUTOSTEER_{name}", "tcp://10.0.0.1:80")
    monkeypatch.setenv("AUTOSTEER_PORT", "tcp://10.0.0.1:80")
    assert load_settings({}).settings == Settings()


@pytest.mark.parametrize("name", ["a.json", "autosteer"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    assert ".yaml, .yml or .toml" in problems(tmp_path, "", name)[0]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings({}, tmp_path / "none.yaml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings({}, tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        load_settings({}, written(tmp_path, "a = ", "bad.toml"))


def test_settings_are_frozen_and_hide_what_is_secret(tmp_path: Path) -> None:
    text = f"keys: [{{{ENTRY}}}]\naudit: {{url: 'postgresql://u:SECRET@h/d'}}"
    settings = load_settings({}, written(tmp_path, text)).settings
    assert "SECRET" not in repr(settings)
    assert "aaaa" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_several_words_are_a_list_or_stand_between_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("gpt-4o,dummy", '["gpt-4o", "dummy"]', "gpt-4o, dummy"):
        monkeypatch.setenv("AUTOSTEER_MODEL_ALIASES", text)
        assert load_settings({}).settings.model_aliases == ("gpt-4o", "dummy")
        assert load_settings({"model_aliases": "*"}).settings.model_aliases == ("*",)
    monkeypatch.delenv("AUTOSTEER_MODEL_ALIASES")
    assert load_settings({}, written(tmp_path, "model_aliases: [x, y]\n")).settings.model_aliases == ("x", "y")
