"""`youtu run` and what follows it, with a real daemon in the background."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.person import Person


@pytest.fixture
def person() -> Iterator[Person]:
    with tempfile.TemporaryDirectory(prefix="youtu") as folder:
        made = Person(Path(folder), load_s=0.3)
        yield made
        made.youtu("stop")


def daemon_pid(person: Person) -> int:
    return int((person.state / "daemon.pid").read_text())


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # init takes its time
    except psutil.NoSuchProcess:
        return True


def test_run_starts_a_daemon_that_stays_and_stop_ends_it(person: Person) -> None:
    done = person.youtu("run", "one", "你好")
    assert (done.stdout, done.stderr, done.returncode) == ("你好\n", "", 0)
    pid = daemon_pid(person)
    assert os.getsid(pid) == pid  # no terminal ends it
    assert person.youtu("run", "one", "--max-new-tokens", "3", "again").stdout == "aga\n"
    assert daemon_pid(person) == pid
    assert person.youtu("socket").stdout == f"{person.socket}\n"
    assert "[INFO] ready" in person.youtu("logs", "-n", "3").stdout
    assert (person.state / "daemon.log").stat().st_mode & 0o777 == 0o600
    done = person.youtu("stop")
    assert (done.returncode, done.stdout) == (0, "The daemon has ended.\n")
    assert has_ended(pid)
    assert person.youtu("status").returncode == 3
    assert person.youtu("stop").stdout == "No daemon of this account is running.\n"


def test_another_live_model_is_ended_only_when_it_may_be(person: Person) -> None:
    person.youtu("run", "one", "x")
    done = person.youtu("run", "two", "x")
    assert done.returncode == 1
    assert done.stderr == (
        "youtu: one (profile:default) is loaded, not two: add --switch to replace it\n"
    )
    done = person.youtu("run", "two", "--switch", "y")
    assert (done.stdout, done.stderr, done.returncode) == ("y\n", "", 0)
    assert "model     two\n" in person.youtu("status").stdout
    pid = daemon_pid(person)
    assert "is loaded, not profile:car" in person.youtu("run", "profile:car", "x").stderr
    assert person.youtu("run", "profile:car", "--switch", "z").stdout == "z\n"
    assert "profile   car\n" in person.youtu("status").stdout
    assert daemon_pid(person) == pid  # a profile changes without a restart


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phi-3", "did you mean phi-2?"),
        ("nothing-like-it", "`youtu ls --available` list them"),
        ("profile:cra", "did you mean car"),
        ("./nowhere", "it is not a model directory"),
        ("profile:", "give a model's name, or profile:NAME"),
    ],
)
def test_what_is_not_there_starts_nothing(person: Person, name: str, message: str) -> None:
    done = person.youtu("run", name, "x")
    assert done.returncode != 0
    assert message in done.stderr
    assert not person.state.exists()


def test_a_daemon_that_cannot_start_is_quoted(person: Person) -> None:
    person.configure(service={"socket": str(person.folder / "python/y.sock")})
    done = person.youtu("run", "one", "x")
    assert done.returncode == 1
    assert f"{person.state}/daemon.log says:" in done.stderr
    assert "cannot listen on" in done.stderr


def test_a_licence_that_asks_is_not_taken_for_accepted(person: Person) -> None:
    done = person.youtu("run", "youtu-llm-2b", "x")
    first, last = done.stderr.splitlines()
    assert first.startswith("youtu-llm-2b: 3.94 GB to download, 1.16 GB as a model; licence: see")
    assert last.endswith("then add --accept-license")
    assert done.returncode == 1


def test_chat_waits_while_the_model_loads(person: Person) -> None:
    serving = person.serve()
    done = person.youtu("chat", "hello")
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)
    assert person.youtu("stop").returncode == 0  # one in the foreground too
    assert serving.wait() == 0


def test_a_model_that_was_missing_is_loaded_when_it_is_there(person: Person) -> None:
    serving = person.serve("three")
    while "state     failed" not in person.youtu("status").stdout:
        pass
    assert "the model «three» is not on this machine" in person.youtu("chat", "x").stderr
    person.make_model("three")
    assert person.youtu("run", "three", "now").stdout == "now\n"
    assert person.youtu("stop").returncode == 0
    assert serving.wait() == 0


def test_two_at_once_share_one_daemon(person: Person) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda text: person.youtu("run", "one", text), ("a", "b")))
    assert [(done.stdout, done.stderr) for done in both] == [("a\n", ""), ("b\n", "")]


def test_a_second_serve_names_the_first(person: Person) -> None:
    person.youtu("run", "one", "x")
    done = person.youtu("serve", "--port", "0")
    assert done.returncode == 78
    told = f"another daemon (pid {daemon_pid(person)}) is listening on {person.socket}: "
    assert f"{told}`youtu stop` ends it" in done.stderr


def test_reload_waits_and_reports_the_refusal(person: Person) -> None:
    person.youtu("run", "one", "x")
    person.configure(profile="factory")
    done = person.youtu("reload")
    assert (done.returncode, done.stdout) == (0, "The profile factory is live.\n")
    person.configure(nonsense=1, sampling={"top_p": 7})
    done = person.youtu("reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nonsense: unknown key" in done.stderr
    assert "sampling.top_p: must be at most 1" in done.stderr


def test_options_of_a_request_and_a_session(person: Person) -> None:
    person.youtu("run", "one", "x", "--session", "s", "--system", "be brief")
    done = person.youtu("chat", "--session", "s", "--system", "be brief", "a!b", "--stop", "!")
    assert done.stdout == "a\n"
    done = person.youtu("chat", "--verbose", "--priority", "low", "four")
    assert done.stdout == "four\n"
    assert "answer 5 tokens" in done.stderr
    assert "ended by stop]" in done.stderr
    assert person.youtu("chat", "--priority", "urgent", "x").returncode == 2
