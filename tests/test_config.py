"""The layers of the configuration, and that every wrong one is refused in full."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broken_configs import BROKEN
from youtu_llm import cli, config, paths, yamlsource
from youtu_llm.config import Loaded
from youtu_llm.errors import ConfigError
from youtu_llm.settings import Settings, fields
from youtu_llm.tools import configure

SHIPPED = Path(__file__).parents[1] / "profiles"

GOOD = """\
profile: car  # 车
model: {kv_cache_max_page: 2048}
service:
  restart_on_failure: true
  max_restart_rate: 3/300
sampling:
  stop: ["。", "\\n"]
  temperature: 0.1
"""


@pytest.fixture
def profile_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "car.yaml").write_text("sampling:\n  top_k: 7\n  temperature: 0.1\n")
    (folder / "factory.yaml").write_text("cache: false\n")
    return folder


def load(
    folder: Path,
    text: str | bytes = "",
    environ: Mapping[str, str] = {},
    flags: Mapping[str, Any] = {},
) -> Loaded:
    file = folder.parent / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(file, profile_dirs=[folder], environ=environ, flags=flags)


def test_later_layers_win_and_origins_tell(profile_dir: Path) -> None:
    loaded = load(
        profile_dir,
        "profile: car\nsampling:\n  temperature: 0.2\n  top_p: 0.5\nservice:\n",
        {"YOUTU_SAMPLING__TOP_P": "0.6", "YOUTU_SERVICE__PORT": "9000", "YOUTU_HOST": "unix:///x"},
        {"service.port": 9001},
    )
    sampling = loaded.settings.sampling
    assert (
        sampling.options["top_k"],
        sampling.options["temperature"],
        sampling.options["top_p"],
    ) == (7, 0.2, 0.6)
    assert loaded.settings.service.port == 9001
    file = profile_dir.parent / "config.yaml"
    assert {key: origin for key, origin in loaded.origins.items() if origin != "default"} == {
        "profile": f"{file}:1:1",
        "sampling.top_k": f"profile car ({profile_dir / 'car.yaml'}:2:3)",
        "sampling.temperature": f"{file}:3:3",
        "sampling.top_p": "environment YOUTU_SAMPLING__TOP_P",
        "service.port": "flag --port",
    }
    assert set(loaded.origins) == set(fields())


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("YOUTU_PROFILE", "factory", "profile", "factory"),
        ("YOUTU_SERVICE__API_KEY", "12345", "service.api_key", "12345"),  # text stays text
        ("YOUTU_SAMPLING__STOP", '["。", "!"]', "sampling.stop", ("。", "!")),
        ("YOUTU_SAMPLING__SEED", "null", "sampling.seed", None),
        ("YOUTU_ENGINE__DEVICE", "cpu", "engine.device", "cpu"),
        ("YOUTU_PROFILE", "", "profile", "default"),  # empty is unset
    ],
)
def test_environment(profile_dir: Path, variable: str, text: str, key: str, value: object) -> None:
    tree: Any = load(profile_dir, environ={variable: text}).settings
    for part in key.split("."):
        tree = getattr(tree, part)
    assert tree == value


def test_problems_of_all_layers_come_at_once(profile_dir: Path) -> None:
    (profile_dir / "car.yaml").write_text("service: {port: 1}\nsampling: {top_k: -1}\nprofile: x\n")
    environ = {"YOUTU_SERVICE__PROT": "1", "YOUTU_SAMPLING__TOP_P": "much", "YOUTU_CACHE": "a: b"}
    with pytest.raises(ConfigError) as raised:
        load(profile_dir, "profile: car\ncash: false\n", environ, {"service.port": 70000})
    car, file = profile_dir / "car.yaml", profile_dir.parent / "config.yaml"
    machine = "belongs in config.yaml: a profile may not set facts of the machine"
    assert raised.value.message.splitlines() == [
        f"{car}:1:11: service.port: {machine}",
        f"{car}:2:19: sampling.top_k: must be at least 0 (got -1)",
        f"{car}:3:1: profile: {machine}",
        f"{file}:2:1: cash: unknown key, did you mean cache",
        "environment YOUTU_CACHE: cache: not valid YAML: mapping values are not allowed here",
        "environment YOUTU_SERVICE__PROT: no such setting, did you mean YOUTU_SERVICE__PORT",
        'environment YOUTU_SAMPLING__TOP_P: sampling.top_p: must be a number (got "much")',
        "flag --port: service.port: must be at most 65535 (got 70000)",
    ]
    assert raised.value.exit_status == 78


@pytest.mark.parametrize(("text", "lines"), BROKEN, ids=lambda value: str(value)[:30])
def test_broken_file(profile_dir: Path, text: str | bytes, lines: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(profile_dir, text)
    file = profile_dir.parent / "config.yaml"
    assert raised.value.message.splitlines() == [f"{file}:{line}" for line in lines]


def test_broken_files_are_enough() -> None:
    assert len(BROKEN) >= 60


def test_the_command_exits_78_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("servise: {}\nsampling: {top_p: 9}\n")
    for command in (["config", "check"], ["serve"]):
        line = [sys.executable, "-c", "import youtu_llm.cli as c, sys; sys.exit(c.main())"]
        done = subprocess.run(
            [*line, *command, "--config", str(file)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 78
        assert done.stdout == ""
        assert done.stderr.splitlines() == [
            "youtu: the configuration is wrong:",
            f"{file}:1:1: servise: unknown key, did you mean service",
            f"{file}:2:19: sampling.top_p: must be at most 1.0 (got 9)",
        ]


@given(st.binary(max_size=12), st.integers(0, len(GOOD)), st.integers(0, 12))
def test_a_damaged_file_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, num_lost: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "profiles"
    folder.mkdir(exist_ok=True)
    (folder / "car.yaml").touch()
    data = GOOD.encode()
    try:
        said = str(load(folder, data[:at] + noise + data[at + num_lost :]).settings)
    except ConfigError as error:
        said = error.message
    assert said


def test_missing_files(profile_dir: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        config.load(absent, profile_dirs=[], environ={}, flags={})
    loaded = config.load(
        absent, profile_dirs=[profile_dir], environ={}, flags={}, config_optional=True
    )
    assert loaded.settings.profile == "default"
    absent.write_text("profile: factory\n")
    assert loaded.again().settings.cache is False


def test_the_default_socket_is_checked_too(
    profile_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    loaded = load(profile_dir, environ={"XDG_RUNTIME_DIR": "/run/user/1000"})
    assert loaded.settings.service.socket == "/run/user/1000/youtu/youtu.sock"
    assert loaded.origins["service.socket"] == "default"
    with pytest.raises(ConfigError, match=r"default: service\.socket: must have at most 100 char"):
        load(profile_dir, environ={"XDG_RUNTIME_DIR": "/" + "x" * 100})


def test_a_profile_chosen_while_running_wins_until_the_next_reload(profile_dir: Path) -> None:
    loaded = load(profile_dir, "profile: car\n", flags={"profile": "factory"})
    car = loaded.again(profile="car")
    assert car.settings.sampling.options["top_k"] == 7
    assert car.origins["profile"] == "selected at run time"
    assert car.again().settings.profile == "factory"
    with pytest.raises(ConfigError, match="selected at run time: profile: no such profile"):
        loaded.again(profile="bus")


def test_the_earlier_folder_overrides_a_profile(profile_dir: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "car.yaml").write_text("cache: false\n")
    found = config.profiles([mine, tmp_path / "nowhere", profile_dir])
    assert found == {"car": mine / "car.yaml", "factory": profile_dir / "factory.yaml"}


def test_shipped_profiles() -> None:
    base = config.load(None, profile_dirs=[SHIPPED], environ={}, flags={})
    assert configure.check(base) == ["car", "education", "factory"]
    car = base.again(profile="car").settings
    assert car.sampling.stop == ("。", "！", "？", "!", "?", "\n")
    assert (car.sampling.max_new_tokens, car.sampling.options["temperature"]) == (64, 0.1)
    assert (car.engine.max_num_seqs, car.budget.first_word_ms) == (1, 400)
    factory = base.again(profile="factory").settings
    assert (factory.sampling.options["temperature"], factory.cache) == (0.0, False)
    assert factory.model.kv_cache_max_page < base.settings.model.kv_cache_max_page
    education = base.again(profile="education").settings
    assert (
        education.sampling.options["temperature"],
        education.sampling.options["repetition_penalty"],
    ) == (0.5, 1.2)
    assert education.context.long_context
    assert education.text.postprocess


def test_every_setting_is_described_and_bounded() -> None:
    schema = Settings.model_json_schema()
    nodes = [*schema["$defs"].values(), schema]
    leaves = {name: node for part in nodes for name, node in part["properties"].items()}
    for name, node in leaves.items():
        if "$ref" in node:
            continue
        assert node.get("description"), name
        for choice in node.get("anyOf", [node]):
            bounded = {
                "integer": {"minimum", "maximum"} <= set(choice),
                "number": "maximum" in choice
                and bool({"minimum", "exclusiveMinimum"} & set(choice)),
                "string": not {"maxLength", "pattern", "enum"}.isdisjoint(choice),
                "array": {"maxItems"} <= set(choice) and "maxLength" in choice.get("items", {}),
                "boolean": True,
                "null": True,
            }
            assert bounded[choice["type"]], name
    assert all(node["additionalProperties"] is False for node in nodes)


def test_the_serve_flags_are_those_the_configuration_knows() -> None:
    line = "--profile car --model m --kv-cache-max-page 3 --device cpu --threads 2 --socket s"
    line += " --host h --port 1 --streaming --enable-long-context --no-cache"
    args = cli._parser().parse_args(["serve", *line.split(" ")])
    given_flags = {key: value for key, value in vars(args).items() if key in config.FLAGS}
    assert set(given_flags) == set(config.FLAGS)
    assert given_flags["service.socket"] == str(Path("s").absolute())
    assert (given_flags["cache"], given_flags["context.long_context"]) == (False, True)


def test_folders_of_the_system_and_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/1000"}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert paths.config_file(environ) == Path("/home/ann/.config/youtu/config.yaml")
    assert paths.socket_path(environ) == Path("/run/user/1000/youtu/youtu.sock")
    assert paths.models_dir(environ) == Path("/home/ann/.local/share/youtu/models")
    assert paths.socket_path({}) == Path("/tmp/youtu-1000/youtu.sock")
    assert paths.profile_dirs(environ)[:2] == (
        Path("/home/ann/.config/youtu/profiles"),
        Path("/etc/youtu/profiles"),
    )
    assert SHIPPED in paths.profile_dirs(environ)
    assert paths.models_dir({"YOUTU_MODELS": "/m"}) == Path("/m")
    monkeypatch.setattr("os.geteuid", lambda: 105)
    assert paths.config_file(environ) == Path("/etc/youtu/config.yaml")
    assert paths.socket_path(environ) == Path("/run/youtu/youtu.sock")
    assert paths.config_file({"YOUTU_CONFIG": "/c.yaml"}) == Path("/c.yaml")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "profile: car\n"),
        ("profile: factory # x\ncache: false\n", "profile: car # x\ncache: false\n"),
        ("cache: false\nprofile: 'factory'\n", "cache: false\nprofile: car\n"),
        ("profile:\n", "profile: car\n"),
        ("# mine\n\ncache: false\n", "# mine\n\nprofile: car\ncache: false\n"),
        ("# mine", "# mine\nprofile: car\n"),
        ("\ufeffprofile: a\r\ncache: false\r\n", "\ufeffprofile: car\r\ncache: false\r\n"),
        ("{profile: a, cache: false}\n", "{profile: car, cache: false}\n"),
    ],
)
def test_set_value_keeps_the_rest(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(before.encode())
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    configure.set_value(link, "profile", "car")
    assert file.read_bytes().decode() == after
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "link.yaml"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("profile: car", "profile: car\nengine:\n  python: /p\n"),
        (
            "engine:\n  # threads: 2\ncache: true\n",
            "engine:\n  python: /p\n  # threads: 2\ncache: true\n",
        ),
        ("engine:\n    threads: 2 # t\n", "engine:\n    python: /p\n    threads: 2 # t\n"),
        ("engine:\n  python: /old # t\n", "engine:\n  python: /p # t\n"),
    ],
)
def test_set_value_in_a_section(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(before)
    configure.set_value(file, "engine.python", "/p")
    assert file.read_text() == after


def test_set_value_quotes_and_refuses(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    configure.set_value(file, "profile", "7")
    assert yamlsource.read(file).values == {"profile": "7"}
    file.write_text("{cache: false}\n")
    with pytest.raises(configure.YoutuError, match="set profile to car yourself"):
        configure.set_value(file, "profile", "car")
    assert file.read_text() == "{cache: false}\n"
    file.write_text("a: *b\n")
    with pytest.raises(ConfigError, match="aliases are not allowed"):
        configure.set_value(file, "profile", "car")


def test_show_masks_secrets_and_reads_back(profile_dir: Path) -> None:
    loaded = load(profile_dir, 'profile: car\nservice: {api_key: "hush"}\n')
    text = "\n".join(configure.show(loaded))
    assert "hush" not in text
    shown = yamlsource.parse(text.encode(), "shown")
    assert shown.problems == []
    assert Settings.model_validate(shown.values) == loaded.settings.model_copy(
        update={"service": loaded.settings.service.model_copy(update={"api_key": "…"})}
    )
