"""What a node asks of its own certificate day by day: whose it is, and from when until when (RFC 5280, section 4.1).

Reads these from the DER, without the cryptography package: the daemon that has nothing to sign or to check is 8 MB
smaller. It checks no signature: TLS does, and identity.py before a certificate is kept.
"""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import dataclass
from typing import NamedTuple

_SEQUENCE, _SET, _OID, _UTC_TIME, _TIME, _VERSION = 0x30, 0x31, 0x06, 0x17, 0x18, 0xA0
_COMMON_NAME = bytes.fromhex("550403")
_TEXTS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}


class _Element(NamedTuple):
    """One tag, length and value; `rest` is what follows it."""

    tag: int
    value: bytes
    rest: bytes


@dataclass(frozen=True)
class Certificate:
    """Common names of the subject, and the dates, in seconds since the epoch."""

    names: tuple[str, ...]
    start: float
    end: float

    @classmethod
    def of(cls, certificate: bytes) -> Certificate:
        """From PEM (the first one in it) or DER; ValueError if it is none."""
        if certificate.lstrip().startswith(b"-----BEGIN"):
            first, mark, _ = certificate.decode("ascii").partition("-----END CERTIFICATE-----")
            certificate = ssl.PEM_cert_to_DER_cert(first + mark)
        body = _take(_take(certificate, _SEQUENCE).value, _SEQUENCE).value
        if body[:1] == bytes([_VERSION]):
            body = _take(body, _VERSION).rest
        for tag in (0x02, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
            body = _take(body, tag).rest
        validity = _take(body, _SEQUENCE)
        start = _take(validity.value)
        return cls(tuple(_common_names(_take(validity.rest, _SEQUENCE).value)), _time(start), _time(_take(start.rest)))


def _take(data: bytes, wanted: int | None = None) -> _Element:
    """The first element of `data`. Lengths are DER's: definite and as short as can be."""
    if len(data) < 2 or (wanted is not None and data[0] != wanted):
        raise ValueError("this is no certificate")
    at, length = 2, data[1]
    if length > 0x80:
        at += length - 0x80
        length = int.from_bytes(data[2:at], "big")
        if length < 0x80:
            raise ValueError("a length that is not DER")
    elif length == 0x80:
        raise ValueError("a length that is not DER")
    if len(data) < at + length:
        raise ValueError("the certificate is cut off")
    return _Element(data[0], data[at : at + length], data[at + length :])


def _time(element: _Element) -> float:
    text = element.value.decode("ascii")
    if element.tag == _UTC_TIME:  # two digits of the year: up to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif element.tag != _TIME:
        raise ValueError("a date that is none")
    if len(text) != 15 or text[14] != "Z" or not text[:14].isdigit():
        raise ValueError("a date that is not in UTC")
    month, day, hour, minute, second = (int(text[k : k + 2]) for k in range(4, 14, 2))
    return dt.datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=dt.UTC).timestamp()


def _common_names(subject: bytes) -> list[str]:
    found = []
    while subject:
        part = _take(subject, _SET)
        subject, attributes = part.rest, part.value
        while attributes:
            pair = _take(attributes, _SEQUENCE)
            attributes = pair.rest
            kind = _take(pair.value, _OID)
            text = _take(kind.rest)
            if kind.value == _COMMON_NAME:
                found.append(text.value.decode(_TEXTS[text.tag]) if text.tag in _TEXTS else "")
    return found
