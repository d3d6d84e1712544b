from __future__ import annotations

from fractions import Fraction

import pytest

from youtu_llm.tools.evals import answers

NUMBERS = [
    ("He made 65,000-5,000=$<<65000-5000=60000>>60,000\n#### 60000", "60000"),
    ("So \\boxed{70{,}000} dollars, not 5", "70000"),
    ("\\boxed{\\$1,450,000}", "1450000"),
    ("first \\boxed{3}, no: \\boxed{\\frac{3}{4}} of 9", "3/4"),
    ("\\boxed{12 \\text{ km}^2}", "12"),
    ("\\boxed{x = -5} because 7", "-5"),
    ("\\boxed{} then 8", "8"),  # empty: as if it weren't there
    ("it is cut at \\boxed{18", "18"),
    ("The answer is 3.", "3"),
    ("8-3=5, and 5 + 1 1/2 is 6 1/2", "13/2"),
    ("1, 2, 3", "3"),
    ("3 of 100,200", "100200"),
    ("答：还剩２６元。", "26"),
    ("面积是113.04cm²，也就是113.04cm^2", "113.04"),
    ("\\boxed{25\\%}", "1/4"),
    ("增加了百分之25", "1/4"),
    ("是4分之3", "3/4"),
    ("1又1/2米", "3/2"),
    ("2/6", "1/3"),
    ("CO2 and 5/0", None),
    ("四分之三", None),  # written-out numbers are not read
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_the_final_number(text: str, number: str | None) -> None:
    assert answers.final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\ndef f(x):\n    return x\n```\nDone.", "def f(x):\n    return x\n"),
        ("```\nf(1)\n```\n```python\ndef f(x): ...\n```", "def f(x): ...\n"),
        ("```python\ndef f(x):\n    return", "def f(x):\n    return"),  # cut
        ("```python\n    return x\n```", "    return x\n"),  # only the body
        ("    return x", "    return x"),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert answers.code(text, "f") == code


def test_defining_is_not_calling() -> None:
    assert answers.defines("import os\ndef f(x): ...", "f")
    assert not answers.defines("def ff(x): f(x)", "f")
