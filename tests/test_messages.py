"""`docs/messages.md` has each message that users may see, and no other; the reference each public name."""

from __future__ import annotations

import re
from pathlib import Path

import raised

import parcoll

DOCS = Path(__file__).parents[1] / "docs"


def test_each_message_of_the_source_is_on_the_page():
    page = (DOCS / "messages.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S)
    told = [line for block in blocks for line in block.splitlines()]
    found = {text: module for text, module in raised.messages().items() if text not in raised.WITHIN}
    # A new message: write it into a block of the page, with its cause and what to do.
    assert {text: module for text, module in found.items() if text not in told} == {}
    assert [text for text in told if text not in found] == []
    assert len(told) == len(set(told))


def test_messages_are_found_wherever_they_are_put_together(tmp_path, monkeypatch):
    (tmp_path / "some.py").write_text(
        'WANTED = "a number of seconds is wanted"\n'
        "def check(given):\n"
        '    what = f"{given} is not one"\n'
        "    if given:\n"
        '        raise ValueError(f"{WANTED}, got {given!r}")\n'
        '    raise self.refusal("is " + what)\n'
        'warnings.warn(f"it has {given:,} of them", RuntimeWarning)\n'
        'raise Mark("short")\n'
    )
    monkeypatch.setattr(raised, "SOURCE", tmp_path)
    assert set(raised.messages()) == {
        "a number of seconds is wanted, got …",
        "is … is not one",
        "it has … of them",
    }


def test_what_only_parcoll_sees_is_still_raised():
    assert raised.messages().keys() >= raised.WITHIN


def test_the_reference_has_each_public_name():
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    told = re.findall(r"^\.\. auto\w+:: parcoll\.(\w+)$", pages, re.M)
    assert sorted(told) == sorted(parcoll.__all__)
