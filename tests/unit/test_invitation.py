"""Invitation tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.errors import UsageError
from zk0d.invitation import Invitation

GOOD = Invitation("hub.example.org", 7730, "sha256:" + "ab" * 32, "s3cret")


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    st.integers(1, 65535),
    st.text(st.characters(codec="utf-8"), max_size=60),
)
def test_round_trip(host: str, port: int, secret: str) -> None:
    invitation = Invitation(host, port, GOOD.ca, secret)
    assert Invitation.parse(invitation.token()) == invitation


def test_survives_line_breaks() -> None:
    token = GOOD.token()
    assert Invitation.parse(f"  {token[:40]}\n{token[40:]} \n") == GOOD


@given(st.data())
def test_any_torn_or_altered_copy_is_refused(data: st.DataObject) -> None:
    token = GOOD.token()
    at = data.draw(st.integers(5, len(token) - 2))
    letter = data.draw(st.sampled_from("Aaz09-_é="))
    for bad in (token[:at], token[:at] + letter + token[at + 1 :]):
        if bad != token:
            with pytest.raises(UsageError):
                Invitation.parse(bad)


def test_other_words_are_not_invitations() -> None:
    with pytest.raises(UsageError, match="is not an invitation"):
        Invitation.parse("hello")
