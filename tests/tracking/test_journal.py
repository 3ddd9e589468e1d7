"""Whatever happens to a journal's file, what is read is a prefix of what was written."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kd_mlflow.tracking.journal import Journal, records

PLAIN = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=40)
RECORDS = some.lists(some.dictionaries(some.text(max_size=9), PLAIN, max_size=4), max_size=8)


def written(folder: str, content: list[dict]) -> Path:
    journal = Journal(Path(folder) / "one.journal")
    for record in content:
        journal.append(record)
    journal.close()
    return journal.path


def read(path: Path) -> list[dict]:
    return [record for _, record in records(path)]


@given(RECORDS)
def test_what_was_written_is_read_from_any_place_on(content):
    with TemporaryDirectory() as folder:
        path = written(folder, content)
        assert read(path) == content
        places = [0, *(behind for behind, _ in records(path))]
        for number, place in enumerate(places):
            assert [record for _, record in records(path, place)] == content[number:]


@pytest.mark.fault("a journal of curves is cut off at any byte", "what is read is a prefix; it can be gone on with")
@given(RECORDS, some.data())
def test_a_journal_that_is_cut_anywhere_is_a_prefix_and_can_be_gone_on_with(content, data):
    with TemporaryDirectory() as folder:
        path = written(folder, content)
        cut = data.draw(some.integers(0, path.stat().st_size))
        os.truncate(path, cut)
        left = read(path)
        assert left == content[: len(left)]
        journal = Journal(path)
        journal.append({"after": 1})
        journal.close()
        assert read(path) == [*left, {"after": 1}]


@pytest.mark.fault("any byte of a journal is flipped", "never garbage: a prefix of what was written")
@given(RECORDS.filter(bool), some.data())
def test_a_byte_that_is_flipped_costs_its_record_and_those_behind_it(content, data):
    with TemporaryDirectory() as folder:
        path = written(folder, content)
        raw = bytearray(path.read_bytes())
        place = data.draw(some.integers(0, len(raw) - 1))
        raw[place] ^= data.draw(some.integers(1, 255))
        path.write_bytes(raw)
        before = sum(behind <= place for behind in _ends(content, folder))
        assert read(path) == content[:before]


@given(some.binary(max_size=200))
def test_garbage_is_read_as_nothing(raw):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.journal"
        path.write_bytes(raw)
        assert read(path) == []


def _ends(content: list[dict], folder: str) -> list[int]:
    other = Path(folder) / "other"
    other.mkdir()
    return [behind for behind, _ in records(written(str(other), content))]
