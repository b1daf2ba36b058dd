"""Takes personal data and secrets out of a record before it leaves the app.

What a pattern can find is found: e-mail addresses, phone numbers, payment cards, keys and tokens, IP addresses. Names
and street addresses are not: give `Client` a `redact` of your own for those. Every pattern takes time linear in the
text, whatever the text is. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal

from assay.errors import SettingsError
from assay.records import Context, Feedback, Message, Record, ToolEvent

#: What the built-in patterns find; each is replaced by its name in brackets, such as `[email]`.
Kind = Literal["secret", "email", "ip", "card", "phone"]

# What keeps these linear: possessive quantifiers (`++`), bounds, and look-behinds that forbid a start inside a run.
_EMAIL = re.compile(r"(?<![\w.%+'-])[\w.%+'-]++@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{16,}+"  # OpenAI, Anthropic and those that copy them
    r"|gh[opsur]_[A-Za-z0-9]{30,}+|github_pat_[A-Za-z0-9_]{22,}+|glpat-[A-Za-z0-9_-]{20,}+"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|AIza[0-9A-Za-z_-]{35}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}+|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}+"
    r"|hf_[A-Za-z0-9]{30,}+|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}+"
    r"|(?<![_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+"  # JSON web token
    r")"
)
_BEARER = re.compile(
    r"(?<![A-Za-z0-9])((?:bearer|basic)[ \t]{1,4}+)(?=\S{0,200}?[0-9=])[A-Za-z0-9._~+/=-]{16,}+", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"(\b(?:password|passwd|pwd|secret|api[_-]?key|(?:access|auth)[_-]?token)\b[\"']?[ \t]{0,3}[:=][ \t]{0,3}[\"']?)"
    r"(?=[^\s\"',;]{0,200}?[0-9])[^\s\"',;]{8,}+",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@?#]{0,256}+:[^\s/@?#]{1,256}+@")
_BEGIN_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_END_KEY = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
# These begin with their first character and look behind it only then: the search for that one is fast.
_IPV4 = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\.?\w)")
_IPV6 = re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f:]{1,38}+(?![\w:])")
_CARD = re.compile(
    r"[2-6](?<![\w.+-].)(?:"
    r"[0-9]{12,18}+"
    r"|[0-9]{3}([ \u00a0-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}(?:\1[0-9]{1,3})?"  # groups of four, the last of any length
    r"|[0-9]{3}([ \u00a0-])[0-9]{6}\2[0-9]{4,5}"  # 4-6-5 and 4-6-4
    r")(?![\w-])"
)
_PHONE = re.compile(
    r"[+(0-9](?<![\w.+/-].)(?![0-9][/-][0-9]{2}[/-][0-9]{4}(?![0-9]))(?:"  # and not a date
    r"(?:(?<=\+)|(?<=0)0)[1-9][0-9]{0,2}+(?:[ \u00a0./-]?+\(?+[0-9]{1,5}+\)?+){2,6}+"  # international
    r"|(?:(?<=\()|(?<=1)[ .-]\()(?!(?:19|20)[0-9]{2}\))[0-9]{2,5}\)(?:[ ./-]?+[0-9]{1,5}+){1,5}+"  # (area) number
    r"|(?:(?<=[2-9])|(?<=1)[ .-][2-9])[0-9]{2}([ .-])[0-9]{3}\1[0-9]{4}"  # North America
    r"|(?<=0)[1-9][0-9]{0,4}+(?:[ /-][0-9]{2,8}+){1,5}+"  # national, with its leading 0
    r")(?![\w-]|:[0-9])"
)
#: No card, phone number or IPv4 address is in a text in which this finds nothing.
_DIGITS = re.compile(r"[0-9][0-9 \u00a0()./-]{5}")
#: Likewise for tokens, and for what follows a key word.
_TOKEN_SIGNS: Final = (
    "sk-", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "AIza", "xox", "_live_",
    "_test_", "hf_", "npm_", "pypi-", "eyJ",
)  # fmt: skip
_KEY_WORDS: Final = ("bearer", "basic", "passw", "pwd", "secret", "api", "token")


class Redactor:
    """Replaces what it finds in every text of a record by `[email]`, `[phone]`, `[card]`, `[secret]` or `[ip]`.

    The texts are input, output, contexts, reference, tool events, the comment of the feedback, route, cohort values
    and every string in the metadata. Ids are left alone: they join systems.

    Args:
        kinds: which of the built-in patterns to use; all of them by default.
        extra: patterns of your own by name; what they match becomes `[name]`. They run first, in the order given.

    Raises:
        SettingsError: an unknown kind, or a pattern that is not a regular expression.
    """

    def __init__(
        self,
        kinds: Collection[Kind] = ("secret", "email", "ip", "card", "phone"),
        extra: Mapping[str, str | re.Pattern[str]] | None = None,
    ) -> None:
        if unknown := sorted(set(kinds) - set(_REDACTIONS)):
            raise SettingsError(f"redaction: {', '.join(unknown)} is not one of {', '.join(_REDACTIONS)}")
        self._steps: list[Callable[[str], str]] = []
        for name, pattern in (extra or {}).items():
            try:
                self._steps.append(_replacing(re.compile(pattern), f"[{name}]"))
            except re.error as error:
                raise SettingsError(f"redaction: pattern {name}: {error}") from error
        # In this order: a token may hold digits that look like a phone number, an address may hold a secret.
        self._steps += [redact for kind, redact in _REDACTIONS.items() if kind in kinds]

    def __call__(self, record: Record) -> Record:
        """The record, redacted."""
        text = self.text
        return dataclasses.replace(
            record,
            input=text(record.input)
            if isinstance(record.input, str)
            else tuple(Message(role=turn.role, content=text(turn.content)) for turn in record.input),
            output=text(record.output),
            contexts=tuple(Context(text=text(item.text), id=item.id, score=item.score) for item in record.contexts),
            reference=self._optional(record.reference),
            tool_events=tuple(
                ToolEvent(
                    name=event.name,
                    arguments=self._optional(event.arguments),
                    result=self._optional(event.result),
                    error=self._optional(event.error),
                )
                for event in record.tool_events
            ),
            feedback=None
            if record.feedback is None
            else Feedback(
                thumb=record.feedback.thumb,
                rating=record.feedback.rating,
                comment=self._optional(record.feedback.comment),
            ),
            route=self._optional(record.route),
            cohort={label: text(value) for label, value in record.cohort.items()},
            metadata=self._nested(record.metadata),
        )

    def text(self, text: str) -> str:
        """One text, redacted."""
        for step in self._steps:
            text = step(text)
        return text

    def _optional(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)

    def _nested(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._nested(key): self._nested(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._nested(item) for item in value]
        return value


def hash_user_id(user_id: str, salt: str | bytes) -> str:
    """HMAC-SHA256 of the id under the salt, the first 16 bytes in hex: the same user, unknown.

    Keep the salt secret and the same in every process: who has it can try all the ids they know of.
    """
    key = salt.encode() if isinstance(salt, str) else salt
    return hmac.new(key, user_id.encode(errors="replace"), hashlib.sha256).digest()[:16].hex()


def _replacing(pattern: re.Pattern[str], by: str) -> Callable[[str], str]:
    return lambda text: pattern.sub(lambda _: by, text)


def _secrets(text: str) -> str:
    if "PRIVATE KEY" in text:
        text = _without_private_keys(text)
    if any(sign in text for sign in _TOKEN_SIGNS):
        text = _TOKEN.sub("[secret]", text)
    lower = text.lower()
    if any(word in lower for word in _KEY_WORDS):
        text = _BEARER.sub(r"\1[secret]", text)
        text = _ASSIGNED.sub(r"\1[secret]", text)
    if "://" in text:
        text = _URL_PASSWORD.sub("[secret]@", text)
    return text


def _without_private_keys(text: str) -> str:
    """Each key block from its first line to its last; one without an end runs to the end of the text."""
    kept, at = [], 0
    while begin := _BEGIN_KEY.search(text, at):
        kept += [text[at : begin.start()], "[secret]"]
        end = _END_KEY.search(text, begin.end())
        if end is None:
            return "".join(kept)
        at = end.end()
    return "".join([*kept, text[at:]])


def _emails(text: str) -> str:
    return _EMAIL.sub("[email]", text) if "@" in text else text


def _ips(text: str) -> str:
    if _DIGITS.search(text):
        text = _IPV4.sub(lambda found: "[ip]" if _is_ipv4(found[0]) else found[0], text)
    return _IPV6.sub(lambda found: "[ip]" if _is_ipv6(found[0]) else found[0], text) if ":" in text else text


def _is_ipv4(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


def _is_ipv6(text: str) -> bool:
    # Without a digit it is more likely code, such as `dead::beef` or `::`.
    if text.count(":") < 2 or not any(character.isdigit() for character in text):
        return False
    import ipaddress  # here, because few texts come so far and every app imports this module

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _cards(text: str) -> str:
    return _CARD.sub(lambda found: "[card]" if _is_card(found[0]) else found[0], text) if _DIGITS.search(text) else text


def _is_card(text: str) -> bool:
    """13 to 19 digits with the right check digit (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _phones(text: str) -> str:
    return _PHONE.sub(_phone, text) if _DIGITS.search(text) else text


def _phone(found: re.Match[str]) -> str:
    """A number has 8 to 15 digits; more than that is a number with others after it."""
    number = found[0]
    while sum(character.isdigit() for character in number) > 15:
        cut = max(number.rfind(separator) for separator in " \u00a0./-")
        if cut < 0:
            return found[0]
        number = number[:cut]
    if sum(character.isdigit() for character in number) < 8:
        return found[0]
    return "[phone]" + _PHONE.sub(_phone, found[0][len(number) :])


_REDACTIONS: Final[dict[str, Callable[[str], str]]] = {
    "secret": _secrets,
    "email": _emails,
    "ip": _ips,
    "card": _cards,
    "phone": _phones,
}
