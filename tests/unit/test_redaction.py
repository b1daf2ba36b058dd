"""All personal data here is synthetic: test card numbers, example domains and documentation addresses."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import redaction
from assay.errors import SettingsError
from assay.records import Context, Feedback, Message, Record, ToolEvent, now
from assay.redaction import _AROUND, _WINDOW, Redactor, _by_windows, hash_user_id
from redaction_corpus import KINDS, Measured, measure

redact = Redactor().text

#: Precision, where it is lower: digits in groups are often no phone number.
FLOORS = {"phone": 0.88}


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to a.b+c@example.co.uk.", "write to [email]."),
        ("<x@example.com>, y_z@sub.example.org;", "<[email]>, [email];"),
        ("ADA@EXAMPLE.COM", "[email]"),
        ("j\u00f6rg@b\u00fccher.example", "[email]"),
        ("mailto:x@example.com?subject=hi", "mailto:[email]?subject=hi"),
        ("o'neil@example.com", "[email]"),
        ("1@2.de", "[email]"),
        ("_ada@example.com_", "[email]_"),
        ("**_ada@example.com_** wrote", "**[email]_** wrote"),
        ("ada@example.com- thanks", "[email]- thanks"),
        ("ada@example.com-she wrote", "[email]-she wrote"),
        ("a@x-y.example.com-", "[email]-"),
    ],
)
def test_email(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize("text", ["a@b", "@handle", "a @ b.com", "x@localhost", "user@", "@example.com", "5 @ 3.50"])
def test_not_email(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "number",
    [
        "+49 170 1234567",
        "+4917012345678",
        "+1 (415) 555-2671",
        "+1-415-555-2671",
        "+44 20 7946 0958",
        "0044 20 7946 0958",
        "+33 1 23 45 67 89",
        "+49 (0)30 123456",
        "(555) 123-4567",
        "(030) 1234567",
        "555-123-4567",
        "555.123.4567",
        "415 555 2671",
        "1-800-555-0199",
        "0170/1234567",
        "020 7946 0958",
        "030 123456",
        "01 23 45 67 89",
    ],
)
def test_phone(number: str) -> None:
    assert redact(number) == "[phone]"
    assert redact(f"call {number}, please.") == "call [phone], please."
    assert redact(f"Tel:{number}\n") == "Tel:[phone]\n"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20",
        "01-02-2026",
        "05/06/2026 12:30",
        "on 05-06-2026 12:30",
        "order 5551234567",
        "v1.2.3",
        "1,234,567.89",
        "10 20 30 40",
        "pages 100-200",
        "(2019) 1234-5678",
        "ISBN 978-3-16-148410-0",
        "12345-67890",
        "3.14159265358979",
        "+5",
        "+1 234",
        "in 1999 2000 2001",
        "id-0170-1234567",
        "2026-11-20T18:07:38.280674Z",
        "1700000000",
    ],
)
def test_not_phone(text: str) -> None:
    assert redact(text) == text


def test_a_phone_number_with_numbers_after_it() -> None:
    assert redact("+49 170 1234567 12345678") == "[phone] 12345678"
    assert redact("0170/1234567 020 7946 0958 01 23 45 67 89").startswith("[phone]")
    assert redact("+" + "9" * 40) == "+" + "9" * 40


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "5500005555555559",
        "6011000990139424",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "3056 930902 5904",
        "4222222222222",
        "6304 0000 0000 0000",
    ],
)
def test_card(number: str) -> None:
    assert redact(f"pay with {number}.") == "pay with [card]."


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # wrong check digit
        "4111 1111 1111 1112",
        "1111111111111117",  # no card begins with 1
        "41111111111111111111111",  # too long
        "411111111111",  # too short
        "x4111111111111111",
        "4111111111111111-1",
        "0.4111111111111111",
    ],
)
def test_not_card(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My card is 4111 1111 1111 1111 12/27 cvv 123", "My card is [card] 12/27 cvv 123"),
        ("4242 4242 4242 4242 04/28 737", "[card] 04/28 737"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("4111111111111111 123", "[card] 123"),
        ("visa 4242-4242-4242-4242-737", "visa [card]-737"),
        ("4242424242424242-737 then", "[card]-737 then"),
        ("charge my card 4242 4242 4242 4242 20 euros", "charge my card [card] 20 euros"),
        ("4111 1111 1111 1111 4242 4242 4242 4242", "[card] [card]"),
        ("3782 822463 10005 0428", "[card] 0428"),
    ],
)
def test_a_card_with_numbers_after_it(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DE89370400440532013000 DE12500105170648489890", "[iban] [iban]"),
        ("NL91 ABNA 0417 1643 00 GB82 WEST 1234 5698 7654 32", "[iban] [iban]"),
        ("AB12 DE89370400440532013000", "AB12 [iban]"),
        ("AB12 CD34 EF56 DE89 3704 0044 0532 0130 00 and on", "AB12 CD34 EF56 [iban] and on"),
    ],
)
def test_an_iban_beside_others(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "secret",
    [
        "sk-" + "a1B2" * 6,
        "sk-proj-" + "a1B2_-" * 6,
        "sk-ant-api03-" + "a1B2" * 10,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2_" * 6,
        "glpat-" + "a1B2" * 5,
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "AIza" + "a1B2c" * 7,
        "xoxb-123456789012-abcdef",
        "sk_live_" + "a1B2" * 6,
        "hf_" + "aB" * 17,
        "npm_" + "a1B2" * 9,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_xyz",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMjM0In0.",
    ],
)
def test_secret(secret: str) -> None:
    assert redact(secret) == "[secret]"
    assert redact(f'key="{secret}", and') == 'key="[secret]", and'
    assert redact(f"use {secret} now") == "use [secret] now"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdefghijkl0123456789", "Authorization: Bearer [secret]"),
        ("authorization: basic dXNlcjpwYXNzd29yZA==", "authorization: basic [secret]"),
        ("password: hunter22xyz", "password: [secret]"),
        ('{"api_key": "abcd1234efgh", "b": 1}', '{"api_key": "[secret]", "b": 1}'),
        ("API-KEY=abcd1234efgh&x=1", "API-KEY=[secret]"),
        ("postgres://app:p4ss@db.example.com/x", "postgres://[secret]@db.example.com/x"),
        ("redis://:p4ss@10.0.0.1:6379", "redis://[secret]@[ip]:6379"),
        ("token: password: hunter22xyz", "token: password: [secret]"),
        ("token=" * 50 + "hunter22xyz", "token=[secret]"),
        ("password=" + "please" * 60 + " token=abcd1234", "password=" + "please" * 60 + " token=[secret]"),
        ("token=aaaaaaaaaaaapassword: hunter22xyz", "token=aaaaaaaaaaaapassword: [secret]"),
    ],
)
def test_secrets_by_what_is_around_them(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "risk-assessment-methodology-of-2026",
        "the task-force",
        "Bearer of good news and more",
        "basic understanding",
        "password: please reset",
        "my password is lost",
        "https://example.com/a:b@c",
        "AKIA is a prefix",
        "eyJ",
        "skating-is-fun-all-winter",
    ],
)
def test_not_secret(text: str) -> None:
    assert redact(text) == text


PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a {PRIVATE_KEY} b", "a [secret] b"),
        (f"{PRIVATE_KEY}{PRIVATE_KEY}", "[secret][secret]"),
        ("a -----BEGIN PRIVATE KEY-----\nMIIB\nAAAA", "a [secret]"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----.", "[secret]."),
        ("-----BEGIN PUBLIC KEY-----\nMIIB", "-----BEGIN PUBLIC KEY-----\nMIIB"),
        ("the PRIVATE KEY of it", "the PRIVATE KEY of it"),
    ],
)
def test_private_keys(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 192.0.2.1.", "from [ip]."),
        ("192.0.2.255:8080", "[ip]:8080"),
        ("0.0.0.0/0", "[ip]/0"),
        ("2001:db8::8a2e:370:7334", "[ip]"),
        ("2001:0db8:0000:0000:0000:8a2e:0370:7334", "[ip]"),
        ("http://[::1]:80/", "http://[[ip]]:80/"),
        ("fe80::1%eth0", "[ip]%eth0"),
        ("::ffff:192.0.2.1", "::ffff:[ip]"),
    ],
)
def test_ip(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "256.1.1.1",
        "1.2.3",
        "1.2.3.4.5",
        "v1.2.3.4",
        "12:30:45",
        "std::vector",
        "dead::beef",
        "::",
        "aa:bb:cc:dd:ee:ff",
        "a: b: c: 1",
        "1:2",
        "10:20:30:40",
    ],
)
def test_not_ip(text: str) -> None:
    assert redact(text) == text


def test_every_text_of_a_record() -> None:
    mail = "x@example.com"
    record = Record(
        record_id="x@example.com",
        timestamp=now(),
        app="shop",
        input=(Message(role="user", content=mail),),
        output=mail,
        contexts=(Context(text=mail, id="doc-1", score=0.5),),
        reference=mail,
        tool_events=(ToolEvent(name="send", arguments=mail, result=mail, error=mail),),
        feedback=Feedback(thumb="down", rating=1.0, comment=mail),
        route=f"/users/{mail}",
        session_id="s-1",
        cohort={"user": mail},
        metadata={"a": mail, mail: [mail, {"b": (mail, 1, None, True)}], "n": 5},
    )
    redacted = Redactor()(record)
    assert redacted.input == (Message(role="user", content="[email]"),)
    assert redacted.output == "[email]"
    assert redacted.contexts == (Context(text="[email]", id="doc-1", score=0.5),)
    assert redacted.reference == "[email]"
    assert redacted.tool_events == (ToolEvent(name="send", arguments="[email]", result="[email]", error="[email]"),)
    assert redacted.feedback == Feedback(thumb="down", rating=1.0, comment="[email]")
    assert redacted.route == "/users/[email]"
    assert redacted.cohort == {"user": "[email]"}
    assert redacted.metadata == {"a": "[email]", "[email]": ["[email]", {"b": ["[email]", 1, None, True]}], "n": 5}
    assert (redacted.record_id, redacted.session_id) == ("x@example.com", "s-1"), "ids join systems"
    assert record.output == mail, "the record that was given is as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_recall_and_precision_on_the_corpus(measured: Measured, kind: str) -> None:
    """What was measured, less a margin: `python benchmarks/redaction.py` prints it."""
    assert measured.spans[kind] >= 100
    assert measured.found[kind] >= 0.97 * measured.spans[kind], "\n".join(measured.missed)
    assert measured.right[kind] >= FLOORS.get(kind, 0.97) * measured.marks[kind], "\n".join(measured.wrong)


def test_every_form_is_found(measured: Measured) -> None:
    assert {form for _, form in measured.forms} >= {
        "percent",
        "html",
        "json",
        "digits",
        "zero-width",
        "multi-line",
        "url",
    }
    for key, n in measured.forms.items():
        assert measured.found_forms[key] >= 0.9 * n, key


def metadata(**items: Any) -> Any:
    """These, redacted as the metadata of a record."""
    return dict(Redactor()(Record(record_id="1", timestamp=now(), metadata=items)).metadata)


def test_a_key_that_names_a_secret_hides_its_value() -> None:
    hidden = [
        "password",
        "passwords",
        "db_password",
        "dbPassword",
        "password_confirm",
        "password2",
        "apiKey",
        "api_keys",
        "x-api-key",
        "Authorization",
        "client_secret",
        "Set-Cookie",
        "auth-token",
        "githubToken",
    ]
    kept = ["tokens", "maxTokens", "keyword", "prompt_tokens", "secretary", "monkey", "completion_token_count"]
    given = dict.fromkeys(hidden + kept, "correct horse")
    assert {key for key, value in metadata(**given).items() if value == "[secret]"} == set(hidden)
    record = Record(record_id="1", timestamp=now(), metadata=given)
    assert Redactor(kinds=["email"])(record).metadata == record.metadata


def test_all_that_stands_under_such_a_key_is_hidden() -> None:
    assert metadata(headers={"Cookie": ["sid=abc"], "authorization": ["abcdef"], "Accept": ["text/html"]}) == {
        "headers": {"Cookie": ["[secret]"], "authorization": ["[secret]"], "Accept": ["text/html"]}
    }
    assert metadata(api_key={"value": "hunter2", "of": {"team": "blue team"}}) == {
        "api_key": {"value": "[secret]", "of": {"team": "[secret]"}}
    }
    assert metadata(password=12345678, pin=1234) == {"password": "[secret]", "pin": 1234}


def test_what_is_too_short_or_a_count_is_no_secret() -> None:
    kept = {"password": True, "api_key": None, "secret": "off", "token": 4096, "time_to_first_token": 0.3512}
    assert metadata(**kept) == kept


def test_a_number_is_looked_at_as_a_text_would_be() -> None:
    assert metadata(card=4242424242424242, order=4242424242424241, n=5, at=1.5) == {
        "card": "[card]",
        "order": 4242424242424241,
        "n": 5,
        "at": 1.5,
    }


def test_a_private_key_in_lines_of_their_own() -> None:
    lines = ["before", "-----BEGIN PRIVATE KEY-----", "MIIB", 7, "AAAA", "-----END PRIVATE KEY----- tail", "MIIB"]
    redacted = Redactor()(Record(record_id="1", timestamp=now(), metadata={"k": lines})).metadata["k"]
    assert redacted == ["before", "[secret]", "[secret]", 7, "[secret]", "[secret] tail", "MIIB"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x%40example.com", "[email]"),
        ("caf\u00e9 &#99; x&#x40;example&period;com &amp;", "caf\u00e9 &#99; [email] &amp;"),
        ("\u200bx@exam\u200bple.com \u2014 \u201cq\u201d", "\u200b[email] \u2014 \u201cq\u201d"),
        ("\uff14111 1111 1111 1111", "[card]"),
        ("100%20 sure &#8212; of \u0663", "100%20 sure &#8212; of \u0663"),
    ],
)
def test_other_ways_to_write_it(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_record_without_any_stays_equal() -> None:
    record = Record(record_id="1", timestamp=now(), input="How are you?", output="Fine.", metadata={"n": 1})
    assert Redactor()(record) == record


def test_kinds_can_be_chosen() -> None:
    only_ip = Redactor(kinds=["ip"])
    assert only_ip.text("x@example.com 192.0.2.1") == "x@example.com [ip]"
    assert Redactor(kinds=[]).text("x@example.com") == "x@example.com"


def test_patterns_of_ones_own_come_first() -> None:
    redactor = Redactor(extra={"order": r"ORD-\d+", "name": re.compile("ada", re.IGNORECASE)})
    assert redactor.text("Ada ordered ORD-4111111111111111") == "[name] ordered [order]"


def test_a_name_is_not_read_as_a_template() -> None:
    assert Redactor(extra={r"\1": "x"}).text("x") == r"[\1]"


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="secret, email, ip, iban, card, national_id, phone"):
        Redactor(kinds=["emails"])  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="pattern bad"):
        Redactor(extra={"bad": "("})


@given(st.text())
def test_any_text(text: str) -> None:
    redacted = redact(text)
    assert redact(redacted) == redacted, "what is redacted stays so"


@given(st.text(st.characters(exclude_categories=["N"]), max_size=40).filter(lambda text: "@" not in text))
def test_text_without_digits_and_at_signs_loses_nothing_but_secrets(text: str) -> None:
    redacted = redact(text)
    assert redacted == text or "[secret]" in redacted


def test_user_ids_are_hashed_with_the_salt() -> None:
    expected = hmac.new(b"salt", b"ada", hashlib.sha256).hexdigest()[:32]
    assert hash_user_id("ada", "salt") == hash_user_id("ada", b"salt") == expected
    assert hash_user_id("ada", "other") != expected
    assert hash_user_id("bob", "salt") != expected
    assert len(hash_user_id("\ud800", "salt")) == 32


def test_deeply_nested_metadata() -> None:
    deep: Any = "x@example.com"
    for _ in range(50):
        deep = [deep]
    redacted: Any = Redactor()(Record(record_id="1", timestamp=now(), metadata={"d": deep})).metadata["d"]
    for _ in range(50):
        (redacted,) = redacted
    assert redacted == "[email]"


SECRETS = ["sk-" + "a1B2" * 6, "ada@example.com", "DE89370400440532013000", "4111 1111 1111 1111", "+49 170 1234567"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2 * _WINDOW), st.sampled_from(SECRETS)), min_size=1, max_size=5),
    st.sampled_from(["lorem ipsum ", "x ", "(9) ", "- "]),
)
def test_where_a_text_is_cut_does_not_matter(parts: list[tuple[int, str]], filling: str) -> None:
    """A long text is looked at piece by piece, and comes to the same as its lines one by one."""
    lines = [line for length, secret in parts for line in (filling * (length // len(filling)), f"see {secret} there")]
    assert redact("\n".join(lines)) == "\n".join(map(redact, lines))


@pytest.mark.parametrize("before", [0, _WINDOW - 10, _WINDOW + 10, 3 * _WINDOW])
@pytest.mark.parametrize("length", [100, _AROUND + 100, 5 * _WINDOW])
def test_a_secret_longer_than_what_is_looked_at_goes_as_a_whole(before: int, length: int) -> None:
    prose = "word " * (before // 5)
    assert redact(f"{prose}sk-{'a1' * (length // 2)} there") == f"{prose}[secret] there"
    key = "A\n" * (length // 2)
    assert redact(f"{prose}-----BEGIN PRIVATE KEY-----\n{key}") == f"{prose}[secret]"
    assert redact(f"{prose}-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----.") == f"{prose}[secret]."


def test_no_pattern_sees_a_long_text_at_once() -> None:
    """The other threads of the app stand still while one runs."""
    seen: list[int] = []
    assert not list(_by_windows(lambda text: seen.append(len(text)) or [], "token=" * 100_000))  # type: ignore[func-returns-value]
    assert max(seen) <= _WINDOW + 2 * _AROUND
    assert len(seen) == -(-600_000 // _WINDOW)


def test_every_sign_of_a_token_is_looked_for() -> None:
    """The search goes by characters that texts seldom hold; no sign may fall between them."""
    grouped = [(mark, sign) for mark, signs in redaction._SIGNS_BY_MARK for sign in signs]
    assert sorted(sign for _, sign in grouped) == sorted(redaction._TOKEN_SIGNS)
    assert all(mark in sign for mark, sign in grouped)
