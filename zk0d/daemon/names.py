"""What a person may call a dataset or a federation: one rule, for a name also becomes a folder's."""

from __future__ import annotations

import re

from zk0d.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked(name: str, whose: str, hint: str = "letters, digits, dots, dashes; 64 at most") -> str:
    """`name` itself. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a {whose}'s name", hint)
    return name
