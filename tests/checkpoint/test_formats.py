"""Folders that another parcoll wrote, and descriptions in a folder that are not what was written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from checkpoints import pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcoll import CheckpointError, Connection, ParallelGen, parallel
from parcoll.checkpoint.descriptions import (
    CHAIN,
    END,
    FORMAT,
    _sealed,
    chain_file,
    end_file,
    running_python,
)
from parcoll.checkpoint.fingerprint import of_function

# What parcoll wrote in format 1 for ["1", "2"], map(int), which then was killed.
OLD_PIECE = "parcoll-000000000000-000000000002.piece"
OLD = {
    CHAIN: b"""{
 "format": 1,
 "python": "cpython 3.11",
 "length": 4,
 "steps": [
  {
   "label": "map(int)",
   "kind": "map",
   "parts": {
    "the function": "0363226b3761a90af390dbbf3616efff"
   }
  }
 ]
}""",
    OLD_PIECE: b"parcoll piece 1\n"
    b"\xa2s\xcc\x10\xba$,:\xa8\xc8\xa3]\xfa[7\x11\xcf\xe8\xe9\x7f\xc98E\xdds\xf2\x1d&\x8es\x90\x8f"
    b"c\x00\x00\x00\x00\x00\x00\x00G\x00\x00\x00\x00\x00\x00\x00\x80\x04\x95<\x00\x00\x00\x00\x00\x00\x00]"
    b"\x94(K\x00K\x02C\x10\xce\xa1\x81lQ\x1c\xe8R}\x82\xfd\x83\x9d\xa5\xa8H\x94K\x02]\x94K\x02K\x02\x86\x94a"
    b"]\x94K\x00K\x00K\x00\x87\x94aC\x00\x94]\x94K\x14at\x94a."
    b"\x80\x05\x95\t\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01K\x02e.",
    ".parcoll-unfinished-20363-1": b"parcoll piece 1\nhalf",
}
# What it wrote in format 2, whose descriptions had no checksum; it had come to the end.
SECOND = {
    CHAIN: OLD[CHAIN].replace(b'"format": 1', b'"format": 2'),
    OLD_PIECE: OLD[OLD_PIECE].replace(b"parcoll piece 1", b"parcoll piece 2"),
    END: b'{\n "elements": 2\n}',
}
# What it wrote in format 3, which did not say when the results came, nor which were of elements that failed.
THIRD = (
    b"parcoll piece 3\n\x967\x8c\tR\x0e\x7f\xd5[\xdc!Q\x88\xbe\xa1\xc9Z\n\xa7\x89!y\xa59\xf6\xf3\xce"
    b"\xbaA\xbb[\xdbc\x00\x00\x00\x00\x00\x00\x00" + OLD[OLD_PIECE][56:]
)
DELETE = r", or delete the folder \(or name another one\) to start from the first element$"


@pytest.fixture(params=["{}/run", "memory://{}/run"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> fsspec.FSMap:
    """Give a folder's files by name, on a disk and elsewhere."""
    return fsspec.get_mapper(request.param.format(tmp_path), create=True)


def url_of(folder: fsspec.FSMap) -> str:
    protocol = folder.fs.protocol
    return folder.root if "file" in protocol else f"memory://{folder.root}"


def numbers(folder: fsspec.FSMap, source: Any = ("1", "2", "3", "4")) -> ParallelGen[int]:
    return parallel(source, partition_size=2, checkpoint=url_of(folder)).map(int)


def refusal(folder: fsspec.FSMap) -> str:
    """Return the one sentence with which a folder is refused; nothing is read or removed."""
    before = {name: folder[name] for name in folder if name != "parcoll.lock"}
    source = iter(["1", "2", "3", "4"])
    with pytest.raises(CheckpointError) as raised:
        list(numbers(folder, source))
    assert str(raised.value).startswith(f"the checkpoint {url_of(folder)!r} ")
    assert "\n" not in str(raised.value)
    assert {name: folder[name] for name in folder if name != "parcoll.lock"} == before
    assert next(source) == "1"
    return str(raised.value)


def test_a_folder_of_format_1_is_refused(inline: Connection, folder: fsspec.FSMap):
    folder.update(OLD)
    older = r"was written by an older parcoll \(format 1, this one writes 4\): go on with that version"
    assert re.search(older + DELETE, refusal(folder))
    del folder[OLD_PIECE]
    assert re.search(older + DELETE, refusal(folder))
    assert FORMAT == 4


def test_a_folder_of_format_2_is_refused(inline: Connection, folder: fsspec.FSMap):
    folder.update(SECOND)
    older = r"was written by an older parcoll \(format 2, this one writes 4\): go on with that version"
    assert re.search(older + DELETE, refusal(folder))
    del folder[OLD_PIECE], folder[END]
    assert re.search(older + DELETE, refusal(folder))


def test_a_folder_of_format_3_goes_on(inline: Connection, folder: fsspec.FSMap):
    """With pieces of this format beside those that it has."""
    step = {"label": "map(int)", "kind": "map", "parts": of_function(int)}
    described = {"format": 3, "python": running_python(), "length": 4, "steps": [step]}
    folder[CHAIN], folder[OLD_PIECE] = _sealed(described), THIRD
    found = numbers(folder)
    assert list(found) == [1, 2, 3, 4]
    assert found.stats.resumed == 2
    assert (folder[CHAIN], folder[OLD_PIECE]) == (_sealed(described), THIRD)
    found = numbers(folder, ["1", "2", "3", "4", "5"])
    assert found.take(5) == [1, 2, 3, 4, 5]
    assert found.stats.resumed == 4
    grown = json.loads(folder[CHAIN])
    assert (grown["format"], grown["length"], grown["since"]) == (FORMAT, 5, None)
    assert list(numbers(folder, ["1", "2", "3", "4", "5"])) == [1, 2, 3, 4, 5]


def test_a_folder_of_a_format_to_come_is_refused(inline: Connection, folder: fsspec.FSMap):
    """Whatever else the file says."""
    folder[CHAIN] = json.dumps({"format": FORMAT + 1, "chain": []}).encode()
    folder[OLD_PIECE] = b"another suffix, another content"
    newer = r"was written by a newer parcoll \(format 5, this one writes 4\): go on with that vers.*"
    assert re.search(newer + DELETE, refusal(folder))


def test_old_results_whose_description_was_deleted_are_refused(inline: Connection, folder: fsspec.FSMap):
    folder[OLD_PIECE] = OLD[OLD_PIECE]
    undescribed = r"has results but no parcoll-chain\.json, .*: restore that file, or delete the fold"
    assert re.search(undescribed, refusal(folder))


@pytest.mark.parametrize(
    ("number", "writer"), [(1, "an older"), (2, "an older"), (5, "a newer"), (40, "a newer")]
)
def test_a_piece_of_another_format_is_refused_and_kept(
    inline: Connection, folder: fsspec.FSMap, number: int, writer: str
):
    assert numbers(folder).take(3) == [1, 2, 3]
    last = max(name for name in folder if name.endswith(".piece"))
    whole = folder[last]
    foreign = OLD[OLD_PIECE].replace(b"piece 1", b"piece %d" % number)
    folder[last] = foreign
    message = rf"has a file of {writer} parcoll \(format {number}, this one writes 4\), {last}: remove that "
    with pytest.raises(CheckpointError, match=message + "file to run its elements again" + DELETE):
        list(numbers(folder))
    assert folder[last] == foreign
    folder[last] = whole.replace(b"piece 4", b"piece 6")  # one bit: what follows tells that it is ours
    assert list(numbers(folder)) == [1, 2, 3, 4]
    assert folder[last] == whole


# Descriptions that are not what was written
SOURCE = ["1", "2", "3", "4"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with results; a test may replace its descriptions."""
    return tmp_path_factory.mktemp("saved") / "run"


RIGHT, REFUSED = "all results", "refused in one sentence, and kept"


def with_description(saved: Path, name: str, content: bytes, source: Any = SOURCE) -> str:
    """Return what comes of a folder one of whose descriptions is another."""

    def words_or_results() -> str | list[int]:
        try:
            return list(parallel(source, partition_size=2, checkpoint=saved).map(int))
        except CheckpointError as error:
            return str(error)

    if not saved.exists():
        assert words_or_results() == [1, 2, 3, 4]
    before = {path: path.read_bytes() for path in (*pieces(saved), saved / CHAIN, saved / END)}
    assert len(before) == 4
    (saved / name).write_bytes(content)
    try:
        found = words_or_results()
        if not all(path.read_bytes() == before[path] for path in before if path.suffix == ".piece"):
            return "a piece has changed"
        if found == [1, 2, 3, 4]:
            return RIGHT
        words = str(found)
        told = words.startswith(f"the checkpoint {str(saved)!r} ") and "delete the folder" in words
        return REFUSED if told and words.isprintable() else words
    finally:
        for path, whole in before.items():
            path.write_bytes(whole)


@pytest.mark.parametrize("name", [CHAIN, END])
def test_one_bit_anywhere_in_a_description(inline: Connection, saved: Path, name: str):
    assert with_description(saved, END, end_file(4)) == RIGHT
    whole = (saved / name).read_bytes()
    for position in range(len(whole)):
        for bit in range(position % 2, 8, 2):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            source = iter(SOURCE) if position % 2 else SOURCE
            assert with_description(saved, name, bytes(damaged), source) == REFUSED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
)


@st.composite
def descriptions(draw: st.DrawFn) -> Any:
    """Give what the file says, with some of its values replaced or left out."""
    step = {"label": "map(int)", "kind": "map", "parts": of_function(int)}
    found: dict[str, Any] = json.loads(chain_file(4, [step], 1.5e9).encoded()) | {"elements": 4}
    for holder in (found, found["steps"][0]):
        for name in draw(st.lists(st.sampled_from(sorted(holder)), unique=True)):
            if draw(st.booleans()):
                del holder[name]
            else:
                holder[name] = draw(json_values)
    return found


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([CHAIN, END]), json_values | descriptions())
def test_any_json_for_a_description(inline: Connection, saved: Path, name: str, found: Any):
    assert with_description(saved, name, json.dumps(found).encode()) == REFUSED
    if isinstance(found, dict):
        assert with_description(saved, name, _sealed(found)) in (RIGHT, REFUSED)


SHAPES: list[tuple[str, Any]] = [
    (END, {"elements": "abc"}),
    (END, {"elements": True}),
    (END, {"elements": -1}),
    (END, {"elements": 4.0}),
    (END, {}),
    (END, [["elements", 4]]),
    (CHAIN, {"format": 3}),
    (CHAIN, {"format": "3"}),
    (CHAIN, {"format": 3.0}),
    (CHAIN, {"format": 10**300}),
    (CHAIN, {"format": 0}),
    (CHAIN, {"format": True}),
    (CHAIN, {"format": 3, "python": "cpython 3.11", "length": 4, "steps": [{}]}),
    (CHAIN, {"format": 3, "python": "cpython 3.11", "length": "4", "steps": []}),
    (CHAIN, {"format": 3, "python": "cpython 3.11", "steps": []}),
    (CHAIN, {"format": 4, "python": "cpython 3.11", "length": 4, "steps": [], "since": "now"}),
    (CHAIN, {"format": 4, "python": "cpython 3.11", "length": 4, "steps": [], "since": math.inf}),
    (CHAIN, {"format": 4, "python": "cpython 3.11", "length": 4, "steps": [], "since": True}),
]


@pytest.mark.parametrize(("name", "found"), SHAPES)
def test_what_is_no_description_is_told_as_damage(inline: Connection, tmp_path: Path, name: str, found: Any):
    chain = parallel(SOURCE, checkpoint=tmp_path).map(int)
    assert chain.count() == 4
    text = json.dumps(found).encode()
    sealed = [_sealed(found)] if isinstance(found, dict) else []
    for content in (text, text[:-1], b"[" * 100_000, *sealed):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            CheckpointError, match=f"is damaged: {name} is not what was written: restore what w"
        ):
            list(chain)
