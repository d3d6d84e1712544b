"""What the package says of the program, from the program itself.

    generate.py FOLDER   config.schema.json, youtu.1, youtu.yaml.5 and the bash completion

The manual pages are packaging/man/*.in with their lists filled in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from youtu_llm import cli
from youtu_llm.settings import fields
from youtu_llm.tools import configure
from youtu_llm.tools.commands import completion

MAN = Path(__file__).parent / "man"
SIGNS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, argparse.ArgumentParser]]:
    """(words, help, parser) of every command that does something."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # An alias has the parser of its command.
            subs = {id(sub): (name, sub) for name, sub in reversed(action.choices.items())}
            for name, sub in reversed(subs.values()):
                yield from commands(sub, (*words, name))
            return
    yield words, parser.description or "", parser


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest != "help"]


def command_pages(parser: argparse.ArgumentParser) -> str:
    lines = []
    for words, about, sub in commands(parser):
        operands = "".join(
            f" [{action.metavar}]" if action.nargs == "?" else f" {action.metavar}"
            for action in options(sub)
            if not action.option_strings
        )
        lines += [".TP", f".B {groff(' '.join(words) + operands)}", groff(sentence(about))]
        for action in options(sub):
            if action.option_strings:
                value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
                text = (action.help or "") % vars(action)
                flags = ", ".join(action.option_strings) + value
                lines += [".br", groff(f"{flags}: {text}")]
    return "\n".join(lines)


def setting_pages() -> str:
    lines = []
    for key, info in fields().items():
        default = "" if info.default in ("", (), None) else f" Default: {info.default}."
        limits = bounds(info)
        text = f"{info.description}{default}{f' ({limits})' if limits else ''}"
        lines += [".TP", f".B {groff(key)}", groff(text)]
    return "\n".join(lines)


def bounds(info: Any) -> str:
    """What a value may be, as far as a line can say it."""
    found = [
        f"{sign}{getattr(rule, name)}"
        for rule in info.metadata
        for name, sign in SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    choices = getattr(info.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        found.append("one of " + ", ".join(choices))
    return "; ".join(found)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def groff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def main(folder: Path) -> None:
    parser = cli._parser()
    (folder / "config.schema.json").write_text(configure.schema() + "\n")
    (folder / "youtu").write_text(completion.SCRIPTS["bash"])
    for page, place, text in (
        ("youtu.1", "@COMMANDS@", command_pages(parser)),
        ("youtu.yaml.5", "@SETTINGS@", setting_pages()),
    ):
        template = (MAN / f"{page}.in").read_text()
        (folder / page).write_text(template.replace(place, text))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
