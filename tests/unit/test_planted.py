"""The search that the end-to-end test of secrets relies on finds what it is to find."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from html import escape
from urllib.parse import quote

import pytest

from planted import Search, planted, secret

SECRET = secret("one", "sk-")


def test_secrets_differ_and_are_what_others_write_otherwise() -> None:
    assert secret("one") != secret("two")
    assert quote(SECRET) != SECRET


@pytest.mark.parametrize(
    "leak",
    [
        SECRET,
        f"http://user:{SECRET}@host/",
        quote(SECRET, safe=""),
        escape(f"<{SECRET}>"),
        SECRET[:20],  # cut short
        f"…{SECRET[18:]}",
        SECRET.upper(),
        f"Basic {b64encode(f'u:{SECRET}'.encode()).decode()}",
        f"Basic {b64encode(f'us:{SECRET}'.encode()).decode()}",
        f"Basic {b64encode(f'use:{SECRET}'.encode()).decode()}",
        urlsafe_b64encode(f"user:{SECRET}:more".encode()).decode(),
        repr({"key": SECRET}),
    ],
)
def test_a_leak_is_found_in_every_form(leak: str) -> None:
    search = Search(planted({"one": SECRET, "two": secret("two")}, {}))
    search.look("log", "worker", f"before {leak} after")
    assert [line.partition(":")[0] for line in search.leaks] == ["one in log worker"]
    search.look("log", "exporter", f"before {leak} after".encode())
    assert len(search.leaks) == 2


def test_where_it_is_allowed_it_has_to_be() -> None:
    search = Search(planted({"one": SECRET}, {"headers": ["one"]}))
    search.look("headers", "of the judge", "nothing here")
    assert search.missing() == {("headers", "one")}
    search.look("headers", "of the judge", f"authorization: Bearer {SECRET}")
    assert not search.missing()
    assert not search.leaks
    search.look("log", "worker", f"\xff {SECRET}".encode("latin-1"))
    assert len(search.leaks) == 1


def test_other_texts_are_no_leak() -> None:
    search = Search(planted({"one": SECRET}, {}))
    search.look("log", "worker", f"{secret('another')} {SECRET[:8]} [secret] ***")
    assert not search.leaks
    assert search.looked == {"log": 1}
