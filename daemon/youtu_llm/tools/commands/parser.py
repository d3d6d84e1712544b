"""argparse with a hint for a command that is misspelt, and a guide where none is given."""

from __future__ import annotations

import argparse
from typing import Any

GUIDE = """\
A language model on this machine.

  youtu run qwen2.5-coder-0.5b      download and start a model, then chat
  youtu run MODEL '你好'            the same, for one question
  youtu run profile:car             the same, under a scenario profile
  youtu ls --available              what can be pulled
  youtu status; youtu ps            how the daemon is, what it answers now
  youtu profile ls                  the scenario profiles
  youtu stop                        stop the daemon

`youtu --help` lists every command, `youtu COMMAND --help` its options."""


class Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """With an operand that may be left out found behind options too, as Python 3.13 does:
        `run MODEL --switch PROMPT`."""
        found, extras = super().parse_known_args(args, namespace)
        for action in self._actions:
            is_open = action.nargs == "?" and getattr(found, action.dest) is action.default
            if is_open and not action.option_strings and extras and extras[0][:1] != "-":
                setattr(found, action.dest, extras.pop(0))
        return found, extras

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        is_unknown = action.choices is not None and value not in action.choices
        if isinstance(action, argparse._SubParsersAction) and is_unknown:
            from youtu_llm import explain

            near = explain.nearest(value, action.choices)
            hint = f"did you mean {near}?" if near else f"`{self.prog} --help` lists them"
            raise argparse.ArgumentError(None, f"no command {value}: {hint}")
        super()._check_value(action, value)


def guide(args: argparse.Namespace) -> None:
    print(GUIDE)
