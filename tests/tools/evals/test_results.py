from __future__ import annotations

from pathlib import Path

import pytest

from youtu_llm.errors import InvalidRequest, ResourceError
from youtu_llm.tools.evals.results import Results

ABOUT = {"eval": "test", "data": "d1"}


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Results(path, ABOUT) as results:
        results.add({"id": "a", "text": "行\n二"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "b", "te')  # what a kill in mid-write leaves
    with Results(path, ABOUT) as results:
        assert results.rows == [{"id": "a", "text": "行\n二"}]
        assert path.read_bytes() == whole
        results.add({"id": "b"})
    with Results(path, ABOUT) as results:
        assert [row["id"] for row in results.rows] == ["a", "b"]


def test_another_runs_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Results(path, ABOUT) as results:
        results.add({"id": "a"})
        with pytest.raises(ResourceError, match="another run"):
            Results(path, ABOUT)
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match="another evaluation"):
        Results(path, ABOUT | {"data": "d2"})
    assert path.read_bytes() == before
    for foreign in (b"no line\nat the end", b"{}", b'{"eval": "test", "data": "d1"}  '):
        path.write_bytes(foreign)
        with pytest.raises(InvalidRequest, match="another evaluation"):
            Results(path, ABOUT)
        assert path.read_bytes() == foreign
    with pytest.raises(ResourceError, match="--out"):
        Results(tmp_path / "nowhere" / "r.jsonl", ABOUT)


def test_a_run_without_an_answer_leaves_the_file_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Results(path, ABOUT | {"data": "a typing error"}):
        pass
    with Results(path, ABOUT) as results:
        results.add({"id": "a"})
    path.write_bytes(path.read_bytes()[:10])  # a kill while the first line was written
    with Results(path, ABOUT) as results:
        assert results.rows == []
        results.add({"id": "b"})
    with Results(path, ABOUT) as results:
        assert results.rows == [{"id": "b"}]
