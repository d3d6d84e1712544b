"""Commands that start another Python, which must not import from the caller's folder.

`python -m` and `python -c` put the current folder first on the path, where a file named json.py
would run in place of the real one. `-P` would keep it off, from Python 3.11 on; `-I` would also
drop PYTHONPATH, by which the engine finds this package.
"""

from __future__ import annotations

_WITHOUT_CURRENT_FOLDER = "import sys; sys.path[:] = [place for place in sys.path if place]"


def module(python: str, name: str, *arguments: str) -> tuple[str, ...]:
    """Like `python -m name arguments`."""
    run = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return code(python, run, *arguments)


def code(python: str, text: str, *arguments: str) -> tuple[str, ...]:
    """Like `python -c text arguments`."""
    return (python, "-c", f"{_WITHOUT_CURRENT_FOLDER}\n{text}", *arguments)
