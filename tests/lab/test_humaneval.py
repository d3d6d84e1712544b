"""HumanEval's answers, judged by running them."""

from __future__ import annotations

import json
from pathlib import Path

from lab.evals import humaneval


def test_functions_are_run_with_their_tests(tmp_path: Path) -> None:
    record = {
        "task_id": "T/0",
        "prompt": "from typing import List\n\n\ndef last(xs: List[int]) -> int:\n"
        '    """ The last one. """\n',
        "entry_point": "last",
        "canonical_solution": "    return xs[-1]\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 2\n",
    }
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (question,) = humaneval.TASK.questions(path)
    whole = "def last(xs: List[int]) -> int:\n    return xs[-1]\n"
    assert question.judge(f"```python\n{whole}```").passed
    assert question.judge(f"Like this:\n\n```python\n{whole}").passed, "cut behind its code"
    assert question.judge(record["canonical_solution"]).passed, "a body alone"
    wrong = question.judge(f"```python\n{whole.replace('-1', '0')}```")
    assert (wrong.passed, wrong.why) == (False, "AssertionError")
    assert not question.judge("I would rather not.").passed
