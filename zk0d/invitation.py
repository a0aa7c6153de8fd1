"""The token a maintainer gives an operator: where the hub is, how to know it, and a one-time secret.

One line of letters that survives mail and chat; a checksum tells a torn copy from a wrong hub. Not encrypted: who has
it can enrol once, until it expires.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import asdict, dataclass

from zk0d.durable import canonical_json
from zk0d.errors import UsageError

PREFIX = "zk0-"
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Invitation:
    """`ca` is the fingerprint of the hub's authority; `secret` is empty where the maintainer approves by hand."""

    host: str
    port: int
    ca: str
    secret: str = ""

    def token(self) -> str:
        body = canonical_json(asdict(self))
        return PREFIX + base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:3] + body).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Invitation:
        """Raises UsageError saying whether it is no token at all or a damaged one."""
        text = "".join(token.split())
        if not text.startswith(PREFIX):
            raise UsageError(f"{text[:20]!r} is not an invitation", f"it is one long word that begins with {PREFIX}")
        body = text[len(PREFIX) :]
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            if hashlib.sha256(raw[3:]).digest()[:3] != raw[:3]:
                raise ValueError("checksum")
            value = json.loads(raw[3:])
            made = cls(str(value["host"]), int(value["port"]), str(value["ca"]), str(value.get("secret", "")))
            if not made.host or not 0 < made.port < 65536 or not _FINGERPRINT.match(made.ca):
                raise ValueError("contents")
        except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
            raise UsageError("the invitation is damaged", "copy it again, from the first letter to the last") from None
        return made
