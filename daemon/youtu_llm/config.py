"""The effective configuration, put together from its layers, with the origin of each value.

The order is defaults < profile < config.yaml < environment < flags. A variable names a
setting as YOUTU_SECTION__KEY (YOUTU_SERVICE__PORT=9000) or, for the few outside a section,
YOUTU_KEY (YOUTU_PROFILE=car); text is taken as it is, other values are YAML
(YOUTU_SAMPLING__STOP='["。", "!"]'), an empty variable counts as unset. A variable with two
underscores in a row that names no setting is an error. Others are not settings and are left
alone: YOUTU_CONFIG and YOUTU_MODELS (see paths), YOUTU_HOST (the daemon a client talks to).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from youtu_llm import explain, paths, yamlsource
from youtu_llm.errors import ConfigError
from youtu_llm.settings import SECRETS, Settings, conflicts, fields
from youtu_llm.yamlsource import KeyPath, Place, Problem, dotted

NO_PROFILE = "default"  # the name of having no profile file

# Facts of a machine: switching the scenario must not move or expose its listeners.
NOT_IN_PROFILES = frozenset(
    {
        "profile",
        "engine.python",
        "service.socket",
        "service.host",
        "service.port",
        "service.api_key",
        "service.allowed_hosts",
        "service.allowed_origins",
    }
)

FLAGS = {  # of `youtu serve`, by the setting they set
    "profile": "--profile",
    "model.name": "--model",
    "model.kv_cache_max_page": "--kv-cache-max-page",
    "engine.device": "--device",
    "engine.threads": "--threads",
    "service.socket": "--socket",
    "service.host": "--host",
    "service.port": "--port",
    "text.streaming": "--streaming",
    "context.long_context": "--enable-long-context",
    "cache": "--no-cache",
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where `load` looks; kept so that a reload looks in the same places."""

    config_file: Path | None
    profile_dirs: tuple[Path, ...]
    environ: Mapping[str, str]
    flags: Mapping[str, Any]
    config_optional: bool
    profile: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """`origins`: dotted key -> where its value comes from."""

    settings: Settings
    origins: Mapping[str, str]
    sources: Sources

    def again(self, *, profile: str | None = None) -> Loaded:
        """Read the files again. `profile`, selected at run time, has precedence over every
        layer until the next call. Raises ConfigError and changes nothing."""
        return _load(replace(self.sources, profile=profile))


def load(
    config_file: Path | None,
    *,
    profile_dirs: Sequence[Path],
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    config_optional: bool = False,
) -> Loaded:
    """Read the layers and check them. `flags` has dotted keys.

    `config_optional`: a missing config file is an empty one (the default location). Raises
    ConfigError with every problem of every layer, one a line, as
    `file:line:column: key: what is wrong (got X), did you mean Y`.
    """
    sources = Sources(
        config_file,
        tuple(profile_dirs),
        MappingProxyType(dict(environ)),
        MappingProxyType(dict(flags)),
        config_optional,
        None,
    )
    return _load(sources)


def profiles(profile_dirs: Iterable[Path]) -> dict[str, Path]:
    """Name -> file of every profile; for equal names the earlier folder's."""
    files = [path for folder in profile_dirs for path in sorted(folder.glob("*.yaml"))]
    found = {path.stem: path for path in reversed(files) if path.stem != NO_PROFILE}
    return dict(sorted(found.items()))


@dataclass(slots=True)
class _Layer:
    """What one source sets; `keys` and `places` are where each key and its value stand."""

    label: str = ""  # printed before the place: "profile car"
    values: dict[str, Any] = field(default_factory=dict)
    keys: Mapping[KeyPath, Place | str] = field(default_factory=dict)
    places: Mapping[KeyPath, Place | str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _load(sources: Sources) -> Loaded:
    upper = [_config_layer(sources), _environment_layer(sources.environ), _flag_layer(sources)]
    profile = _profile_layer(upper, sources.profile_dirs)
    layers = [_machine_layer(sources.environ), profile, *upper]
    problems = [problem for layer in layers for problem in _problems(layer)]
    if problems:
        raise _error(problems)

    merged: dict[str, Any] = {}
    origins = dict.fromkeys(fields(), "default")
    places: dict[str, Place | str] = {}
    for layer in layers:
        for path in map(_path, fields()):
            if (value := _get(layer.values, path)) is not _ABSENT:
                _put(merged, path, value)
                place = places[dotted(path)] = layer.keys[path]
                origins[dotted(path)] = f"{layer.label} ({place})" if layer.label else str(place)
    settings = Settings.model_validate(merged)
    problems = []
    for keys, message in conflicts(settings):
        key = next((key for key in keys if key in places), keys[0])
        problems.append(Problem(places.get(key, "default"), key, message))
    if problems:
        raise _error(problems)
    return Loaded(settings, MappingProxyType(origins), sources)


def _error(problems: Iterable[Problem]) -> ConfigError:
    return ConfigError("\n".join(dict.fromkeys(map(str, problems))))


# the layers


def _machine_layer(environ: Mapping[str, str]) -> _Layer:
    """The defaults that depend on the account."""
    path = ("service", "socket")
    layer = _Layer(keys={path: "default"}, places={path: "default"})
    _put(layer.values, path, str(paths.socket_path(environ)))
    return layer


def _config_layer(sources: Sources) -> _Layer:
    file = sources.config_file
    if file is None or (sources.config_optional and _is_missing(file)):
        return _Layer()
    return _file_layer(file)


def _is_missing(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass  # it exists but is unreadable: reading it reports that
    return False


def _file_layer(file: Path, label: str = "") -> _Layer:
    document = yamlsource.read(file)
    sections = {key.partition(".")[0] for key in fields() if "." in key}
    values = {  # a section whose keys are all commented out sets nothing
        key: value
        for key, value in document.values.items()
        if not (value is None and key in sections)
    }
    return _Layer(label, values, document.keys, document.places, document.problems)


def _profile_layer(upper: Sequence[_Layer], profile_dirs: Sequence[Path]) -> _Layer:
    """The file of the profile that the upper layers select."""
    name, chooser = NO_PROFILE, _Layer()
    for layer in upper:
        if "profile" in layer.values:
            name, chooser = layer.values["profile"], layer
    if name == NO_PROFILE or not isinstance(name, str):
        return _Layer()  # a name of a wrong type is the choosing layer's problem
    available = profiles(profile_dirs)
    if name not in available:
        there = (NO_PROFILE, *available)
        message = f"no such profile (got {explain.show(name)})"
        message += _did_you_mean(explain.nearest(name, there)) + f"; there are {', '.join(there)}"
        chooser.problems.append(Problem(chooser.places["profile",], "profile", message))
        return _Layer()
    layer = _file_layer(available[name], f"profile {name}")
    for path, place in layer.keys.items():
        if (key := dotted(path)) in NOT_IN_PROFILES:
            message = "belongs in config.yaml: a profile may not set facts of the machine"
            layer.problems.append(Problem(place, key, message))
    return layer


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    variables = {f"YOUTU_{key.upper().replace('.', '__')}": key for key in fields()}
    layer = _Layer()
    places: dict[KeyPath, str] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith("YOUTU_") or not text:
            continue
        where = f"environment {name}"
        if name not in variables:
            if "__" in name:
                near = explain.nearest(name.upper(), variables)
                message = "no such setting" + _did_you_mean(near)
                layer.problems.append(Problem(where, "", message))
            continue
        path = _path(variables[name])
        places[path] = where
        value: Any = text
        if fields()[variables[name]].annotation is not str:
            document = yamlsource.parse(f"value: {text}".encode(errors="replace"), where)
            layer.problems += [Problem(where, dotted(path), p.message) for p in document.problems]
            value = document.values.get("value")
        _put(layer.values, path, value)
    layer.keys = layer.places = places
    return layer


def _flag_layer(sources: Sources) -> _Layer:
    layer = _Layer()
    places: dict[KeyPath, str] = {
        _path(key): f"flag {FLAGS.get(key, key)}" for key in sources.flags
    }
    for key, value in sources.flags.items():
        _put(layer.values, _path(key), value)
    if sources.profile is not None:
        _put(layer.values, ("profile",), sources.profile)
        places["profile",] = "selected at run time"
    layer.keys = layer.places = places
    return layer


# the checks


def _problems(layer: _Layer) -> list[Problem]:
    """Every problem of one layer by itself, in the order of its lines."""
    problems = list(layer.problems)
    reported = {str(problem.where) for problem in problems}
    keys = (*fields(), *Settings.model_fields)
    try:
        Settings.model_validate(layer.values)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            path = error["loc"]
            if error["type"] == "extra_forbidden":
                where = layer.keys[path]
                message = "unknown key" + _did_you_mean(explain.nearest_key(path, keys))
            else:
                # A variable's or a flag's place is that of its whole value.
                where = layer.places.get(path) or layer.places[path[:2]]
                message = explain.value_error(error, secret=dotted(path) in SECRETS)
            if str(where) not in reported:
                problems.append(Problem(where, dotted(path), message))
    return sorted(problems, key=lambda problem: problem.order)


def _did_you_mean(word: str | None) -> str:
    return f", did you mean {word}" if word else ""


# dotted keys

_ABSENT = object()


def _path(key: str) -> KeyPath:
    return tuple(key.split("."))


def _get(values: Mapping[Any, Any], path: KeyPath) -> Any:
    for part in path[:-1]:
        values = values.get(part, {})
    return values.get(path[-1], _ABSENT)


def _put(values: dict[Any, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value
