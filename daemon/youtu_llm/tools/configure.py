"""`youtu config` and `youtu profile`: show, check and change what is configured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from youtu_llm import atomicfile, config, explain, paths, yamlsource
from youtu_llm.config import Loaded
from youtu_llm.errors import ConfigError, NotFound, YoutuError
from youtu_llm.settings import SECRETS, Settings


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """The effective configuration. `file`, or the one YOUTU_CONFIG names, must exist; the
    default one need not. Raises ConfigError."""
    is_optional = file is None and not os.environ.get("YOUTU_CONFIG")
    return config.load(
        file or paths.config_file(),
        profile_dirs=paths.profile_dirs(),
        environ=os.environ,
        flags=flags or {},
        config_optional=is_optional,
    )


def show(loaded: Loaded) -> Iterator[str]:
    """The effective settings as YAML lines, each with its origin. Secrets are masked."""
    tree = loaded.settings.model_dump(mode="json")
    rows: list[tuple[str, str]] = []
    section = ""
    for key, origin in loaded.origins.items():
        parent, _, name = key.rpartition(".")
        if parent and parent != section:
            rows.append((f"{parent}:", ""))
        section = parent
        value = tree[parent][name] if parent else tree[name]
        text = json.dumps("…" if key in SECRETS and value else value, ensure_ascii=False)
        rows.append((f"{'  ' if parent else ''}{name}: {text}", origin))
    width = max(len(left) for left, _ in rows if len(left) <= 40)
    return (f"{left:<{width}}  # {origin}" if origin else left for left, origin in rows)


def schema() -> str:
    """JSON Schema of config.yaml and profiles, for editors."""
    tree = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(tree | Settings.model_json_schema(), indent=2, ensure_ascii=False)


def check(loaded: Loaded) -> list[str]:
    """Check every profile with the rest of the configuration, so that a later switch cannot
    fail. Returns their names; raises ConfigError with all problems of all of them."""
    names = list(config.profiles(loaded.sources.profile_dirs))
    problems: list[str] = []
    for name in names:
        try:
            loaded.again(profile=name)
        except ConfigError as error:
            problems += error.message.splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return names


def list_profiles(loaded: Loaded, live: str | None) -> Iterator[str]:
    """A line each; `live` is the running daemon's, None without one. It is marked, or else the
    one that the next start will use."""
    configured = loaded.settings.profile
    files = config.profiles(loaded.sources.profile_dirs)
    for name in (config.NO_PROFILE, *files):
        about = "no profile: the defaults"
        if name in files:
            about = str(yamlsource.read(files[name]).values.get("description", ""))
        mark = "*" if name == (live or configured) else " "
        note = " (configured, not live)" if name == configured and live not in (None, name) else ""
        yield f"{mark} {name:<12}  {about}".rstrip() + note


def show_profile(loaded: Loaded, name: str | None) -> str:
    """The profile's file, under a comment with its path. Raises NotFound."""
    files = config.profiles(loaded.sources.profile_dirs)
    name = name or loaded.settings.profile
    if name == config.NO_PROFILE:
        return f"# {name}: no profile, the defaults\n"
    if name not in files:
        raise _no_profile(name, (config.NO_PROFILE, *files))
    return f"# {files[name]}\n" + files[name].read_text(encoding="utf-8")


def _no_profile(name: str, there: Iterable[str]) -> NotFound:
    near = explain.nearest(name, there)
    hint = f", did you mean {near}" if near else ""
    return NotFound(f"no profile {name}{hint}; there are {', '.join(there)}")


def set_value(file: Path, key: str, value: str) -> Callable[[], None]:
    """Write one setting into a config file, atomically, and change nothing else in it. A
    missing file is created. The function it returns undoes the change.

    Raises ConfigError, YoutuError."""
    file = file.resolve()  # what a link points to is changed, not the link
    stat = file.stat() if file.exists() else None
    data = file.read_bytes() if stat else b""
    before = yamlsource.parse(data, str(file))
    if before.problems:
        raise ConfigError("\n".join(map(str, before.problems)))
    section, _, name = key.rpartition(".")
    word = value if yamlsource.resolve(value) == value else json.dumps(value)
    text = _with_value(data.decode(), before, section, name, word)
    after = yamlsource.parse(text.encode(), str(file))
    wanted: dict[str, Any] = {name: value}
    if section:
        wanted = {section: {**(before.values.get(section) or {}), name: value}}
    if after.problems or after.values != {**before.values, **wanted}:
        raise YoutuError(f"cannot edit {file} safely: set {key} to {value} yourself")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.replace(file, text.encode())
    except OSError as error:
        raise YoutuError(f"cannot write {file}: {error.strerror}") from error

    def undo() -> None:
        if stat is None:
            file.unlink()
        else:
            atomicfile.replace(file, data)
            # The daemon compares this time with that of its saved profile.
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return undo


def _with_value(
    text: str, document: yamlsource.Document, section: str, name: str, word: str
) -> str:
    path = (section, name) if section else (name,)
    place = document.places.get(path)
    if place is not None:
        gap = " " if place.start == place.end else ""  # `profile:` with nothing behind it
        return text[: place.start] + gap + word + text[place.end :]
    if not section:
        at = document.places[()].start if document.values else len(text)
        newline = "\n" if at and text[at - 1] != "\n" else ""
        return f"{text[:at]}{newline}{name}: {word}\n{text[at:]}"
    first = next(
        (at for key, at in document.keys.items() if len(key) > 1 and key[0] == section), None
    )
    if first is not None:
        return (
            f"{text[: first.start]}{name}: {word}\n{' ' * (first.column - 1)}{text[first.start :]}"
        )
    if (section,) in document.places:  # all its keys are commented out
        at = document.places[section,].end
        return f"{text[:at]}\n  {name}: {word}{text[at:]}"
    newline = "\n" if text and text[-1] != "\n" else ""
    return f"{text}{newline}{section}:\n  {name}: {word}\n"
