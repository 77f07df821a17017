"""What the pipeline page of a scheduler says, in JSON."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def read(link: str) -> dict[str, Any]:
    with urllib.request.urlopen(link, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


def all_named(link: str, name: str) -> list[dict[str, Any]]:
    return [p for p in read(f"{link}/json")["pipelines"] if p["name"] == name]


def named(link: str, name: str) -> dict[str, Any]:
    (found,) = all_named(link, name)
    return found
