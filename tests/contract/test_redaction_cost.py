"""Redaction runs on texts that users write: no text may make it slow."""

from __future__ import annotations

import time

import pytest

from assay.redaction import Redactor

redact = Redactor().text

HOSTILE = [
    "a", "a@", "@", "1", "1 ", "1-", "1.", "+1", "(1)", "+111111111111111111111111111111a ", "0 1", "01 ", "00 1",
    "4111 ", "4111 1111 1111 111a ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "PRIVATE KEY-----BEGIN A",
    "sk-", "eyJ-", "eyJaaaaaaaa.", "eyJaaaaaaaa-", "Bearer ", "Bearer aaaa", "password=", "password=a", "://", "://a:",
    "a:", "::", "1:", "f:", "a.", "x@a.", "x@a_", "x@-", "x@a.b", "ghp_", "(", "((((1", "+1(", "1(", "(11)1 ",
    "555-555-", "\u00e9", "AKIA", "basic ", "' ", "2-", "1/", "0/", "00", "0-", "-", " ", "\n", "xox", "pypi-",
    "%40", "&#64;", "\u200b", "\u200b1", "\uff11", "\uff11 ", "\\u0040", "a (at) ", "a (at) b (dot) ",
    "secret", "api_key", "token is ",
    "authorization: ", "DE00 1", "DE89", "A", "AB12", "1.1", "123-45-", "?sig=", "hooks.slack.com/services/",
    "token=", "api-key:", "password:", "secret=x ", "bearer bearer+", "token=aaaaaaaaaaaaaaaaa", "DE12 ", "AB12 DE",
    "4242 4242 4242 4242 1", "tel ", "tel 1", "1 (", "SK", "key-", "key-a", "SG.a.",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """Eight times the text: eight times the work, not sixty-four. In processor time: a busy machine is no matter."""

    def seconds(length: int) -> float:
        text = (piece * (length // len(piece) + 1))[:length]
        before = time.process_time()
        redact(text)
        return time.process_time() - before

    short = min(seconds(16_000) for _ in range(3))
    long = min(seconds(128_000) for _ in range(3))
    assert long < 32 * max(short, 0.002)
