"""`youtu completion bash | zsh | fish`: scripts that ask the program itself for the words.

So there is no table to keep: commands, options and choices come from the parser, names from the
folders of models and profiles. Where it has no word to offer, the shell completes files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from youtu_llm import paths

Command = Callable[..., argparse.ArgumentParser]

SCRIPTS = {
    "bash": """\
# bash completion for youtu
_youtu() {
	local cur prev words cword
	_init_completion -n : || return
	mapfile -t COMPREPLY < <(youtu completion words -- "${words[@]:1:cword}" 2>/dev/null)
	__ltrim_colon_completions "$cur"
}
complete -o default -F _youtu youtu
""",
    "zsh": """\
#compdef youtu
_youtu() {
	local -a found
	found=("${(@f)$(youtu completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n $found ]]; then compadd -a found; else _files; fi
}
compdef _youtu youtu
""",
    "fish": """\
# fish completion for youtu
function __youtu_words
	set -l typed (commandline -opc) (commandline -ct)
	youtu completion words -- $typed[2..-1] 2>/dev/null
	or __fish_complete_path (commandline -ct)
end
complete -c youtu -f -a '(__youtu_words)'
""",
}


def add(command: Command, parser: argparse.ArgumentParser) -> None:
    made = command("completion", lambda args: _run(args, parser), "print completion for a shell")
    made.add_argument("shell", choices=(*SCRIPTS, "words"), metavar="bash|zsh|fish")
    made.add_argument("typed", nargs="*", metavar="WORD", help=argparse.SUPPRESS)


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if args.shell in SCRIPTS:
        print(SCRIPTS[args.shell], end="")
        return 0
    found = candidates(parser, args.typed or [""])
    print("".join(f"{word}\n" for word in found), end="")
    return 0 if found else 1


def candidates(parser: argparse.ArgumentParser, typed: list[str]) -> list[str]:
    """What the last word may become, after the others."""
    *before, last = typed
    num_operands, option = 0, None
    for word in before:
        subs = _subcommands(parser)
        if option is not None and option.nargs != 0 and not word.startswith("-"):
            option = None  # its value
        elif word.startswith("-"):
            option = parser._option_string_actions.get(word)
        elif subs:
            if word not in subs:
                return []
            parser = subs[word]
        else:
            num_operands += 1
    if option is not None and option.nargs != 0:
        found: Iterable[str] = _values(option)
    elif last.startswith("-"):
        found = parser._option_string_actions
    elif subs := _subcommands(parser):
        found = subs
    else:
        operands = [action for action in parser._actions if not action.option_strings]
        at = min(num_operands, len(operands) - 1)  # the last one may be repeated
        is_left = num_operands < len(operands) or (operands and operands[at].nargs == "+")
        found = _values(operands[at]) if is_left else ()
    return [word for word in found if word.startswith(last)]


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            subs: dict[str, argparse.ArgumentParser] = action.choices
            return subs
    return {}


def _values(action: argparse.Action) -> Iterable[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.metavar == "MODEL":
        return _models()
    if action.metavar == "PROFILE":
        return _profiles()
    if action.metavar == "MODEL|profile:NAME":
        return [*_models(), *(f"profile:{name}" for name in _profiles())]
    return ()


def _models() -> list[str]:
    """Those here, and those that can be pulled."""
    from youtu_llm.tools.catalogue import catalogue

    here = (path.parent.name for path in paths.models_dir().glob("*/youtu.json"))
    return sorted({*here, *catalogue()})


def _profiles() -> list[str]:
    folders = paths.profile_dirs()
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
