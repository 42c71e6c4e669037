"""Where settings come from: command line, environment, a YAML or TOML file, in this order of precedence."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from server.settings.groups import nested_model
from server.settings.schema import Settings
from server.settings.values import IN_WORDS

PREFIX = "AUTOSTEER_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
SUFFIXES = (".yaml", ".yml", ".toml")
# Kubernetes sets these for a service named autosteer; nobody meant them as settings.
SERVICE_LINK = re.compile(r"AUTOSTEER_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
# Settings of earlier versions, and what to do instead.
GONE = {"prefill_slowdown": "set max_gap_ms, the milliseconds that a step beside running answers may take"}
LINKED_PORT = re.compile(r"(tcp|udp|sctp)://.*")  # what they set AUTOSTEER_PORT to


class ConfigError(ValueError):
    """Settings are wrong; one line for each of `problems`, with the field, the value and the way out."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - 1
        super().__init__(problems[0] + (f" (and {more} more; `autosteer config check` shows all)" if more else ""))
        self.problems = list(problems)


@dataclass(frozen=True)
class Source:
    """One place that settings came from, as a person would name it."""

    values: Mapping[str, Any]
    label: str  # `{field}`, `{FIELD}` and `{option}` stand for the setting

    def name(self, field: str) -> str:
        """What set this field."""
        return self.label.format(field=field, FIELD=field.upper(), option=field.replace("_", "-"))


@dataclass(frozen=True)
class ConfigFile:
    """Which config file was read, and which content of it."""

    path: Path
    sha256: str  # as `sha256sum` prints it

    def __str__(self) -> str:
        return f"{self.path} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class Loaded:
    """Settings, which source set what, and the config file if there was one."""

    settings: Settings
    sources: tuple[Source, ...]
    file: ConfigFile | None = None

    def origin(self, field: str) -> str:
        """What set a top-level field."""
        return _origin(field, self.sources)


def load_settings(options: Mapping[str, object], config: Path | None = None) -> Loaded:
    """Read every source once. `options`: what the command line says, by field. Raises ConfigError."""
    if config is None and (named := os.environ.get(CONFIG_VARIABLE)):
        config = Path(named)
    sources = [Source(options, "--{option}"), _environment()]
    file = None
    if config is not None:
        content = _bytes_of(config)
        file = ConfigFile(config, hashlib.sha256(content).hexdigest())
        sources.append(Source(_parsed(config, content), str(config).replace("{", "{{").replace("}", "}}")))
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged = _joined(merged, source.values)
        if "threshold" in source.values and "target_fpr" not in source.values:
            merged.pop("target_fpr", None)  # a higher source's threshold replaces a lower one's target, and the reverse
        elif "target_fpr" in source.values and "threshold" not in source.values:
            merged.pop("threshold", None)
    try:
        return Loaded(Settings(**merged), tuple(sources), file)
    except ValidationError as error:
        raise ConfigError([_problem(each, sources) for each in error.errors(include_url=False)]) from None


def _joined(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """Two sources' values; mappings are joined, anything else of the higher replaces the lower's."""
    joined = dict(lower)
    for name, value in higher.items():
        below = joined.get(name)
        joined[name] = _joined(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return joined


# sources -----------------------------------------------------------------------------------------------------------


def _environment() -> Source:
    """`AUTOSTEER_...`. Raises ConfigError."""
    fields = {PREFIX + name.upper(): name for name in Settings.model_fields}
    for variable in os.environ:
        name = variable.upper()
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or SERVICE_LINK.fullmatch(name):
            continue
        if (gone := name.removeprefix(PREFIX).lower()) in GONE:
            raise ConfigError([f"{variable} is a setting no more: {GONE[gone]}"])
        if name.partition("__")[0] not in fields:
            raise ConfigError([f"{variable} is no setting{did_you_mean(name, fields)}; unset it"])
    try:
        values = EnvSettingsSource(
            Settings, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, case_sensitive=False
        )()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + (field[1].upper() if field else "...")
        raise ConfigError([f"{name}: must be JSON; a file set by {CONFIG_VARIABLE} is easier to write"]) from None
    if LINKED_PORT.fullmatch(str(values.get("port", ""))):
        del values["port"]
    return Source(values, "environment " + PREFIX + "{FIELD}")


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's booleans, so that `mode: off` is a word, and no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.value[number][0].start_mark
                )
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def read_file(path: Path) -> dict[str, Any]:
    """A YAML or TOML file's settings, not yet validated. Raises ConfigError."""
    return _parsed(path, _bytes_of(path))


def _bytes_of(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError([f"{path}: the name of a config file must end in .yaml, .yml or .toml"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"cannot read the config file {path}: {error.strerror}"]) from None


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode()
        data = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.load(text, _YamlLoader)  # noqa: S506  a SafeLoader
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the file, which may hold secrets
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{path}: {where}is not YAML as it is read here: {error.problem}"]) from None
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
    ):  # the last two: a date that is none, a list as a name
        raise ConfigError([f"{path}: is not YAML"]) from None
    if data is None or data == {}:
        raise ConfigError([f"{path}: is empty; a config file says something, or none is given"])
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError([f"{path}: must be a mapping of setting: value"])
    return data


# problems ----------------------------------------------------------------------------------------------------------


def _problem(error: Any, sources: Sequence[Source]) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    location = [str(part) for part in error["loc"] if part != "[key]"]
    if not location:
        return str(error["msg"])
    field, origin = ".".join(location), _origin(location[0], sources)
    if error["type"] == "extra_forbidden":
        if field in GONE:
            return f"{field} is a setting no more: {GONE[field]} ({origin})"
        known = _known(location)
        hint = did_you_mean(location[-1], known) or f"; there are {', '.join(sorted(known))}"
        return f"{field} is no setting{hint} ({origin})"
    # What stands under keys may be a key, and a URL may hold a password.
    secret = location[0] == "keys" or location[-1] == "url" or location == ["audit"]
    got = "" if secret or error["type"] in ("missing", "threshold") else f", not {_short(error['input'])}"
    return f"{field}: {_told(error)}{got} ({origin})"


def _told(error: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    """What a value must be, in words that say nothing of how that is checked."""
    match error["type"]:
        case "tuple_type":
            return "must be a list"
        case "dict_type" | "model_type":
            return "must hold settings of its own, each as name: value"
        case "string_pattern_mismatch":
            return IN_WORDS[error["ctx"]["pattern"]]
        case "missing":
            return "is missing, and must be given"
    return str(error["msg"]).replace("Input should be", "must be")


def _known(location: Sequence[str]) -> list[str]:
    """The fields that there are where this one is."""
    outer = Settings.model_fields.get(location[0])
    nested = None if outer is None else nested_model(outer)
    return list((nested or Settings).model_fields)


def _origin(field: str, sources: Sequence[Source]) -> str:
    """Every source that has a part in a field's value: one, or several where mappings were joined."""
    having = [source for source in sources if field in source.values]
    if not having:
        return "default"
    joined = [source for source in having if isinstance(source.values[field], dict)]
    return " and ".join(source.name(field) for source in (joined or having[:1]))


def did_you_mean(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """`, did you mean ...?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]}?" if close else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
