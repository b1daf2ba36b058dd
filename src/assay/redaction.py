"""Takes personal data and secrets out of a record before it leaves the app.

What a pattern can find is found: keys, tokens and passwords, e-mail addresses, IP addresses, payment cards, bank
accounts (IBAN), national ids, phone numbers; also where they are written with other digits, percent or HTML encoding,
or invisible characters between them. Names and street addresses are not: give `Client` a `redact` of your own for
those. `benchmarks/redaction.py` prints what it finds of a corpus. Every pattern takes time linear in the text,
whatever the text is. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from assay import _folding
from assay._identifiers import Span, cards, ibans, national_ids
from assay.errors import SettingsError
from assay.records import Context, Feedback, Message, Record, ToolEvent

#: What the built-in patterns find; each is replaced by its name in brackets, such as `[email]`.
Kind = Literal["secret", "email", "ip", "iban", "card", "national_id", "phone"]

_Finder = Callable[[str], Iterable[Span]]

# What keeps these linear: possessive quantifiers (`++`), bounds, and look-behinds that forbid a start inside a run.
_EMAIL = re.compile(r"(?<![\w.%+'-])[\w.%+'-]++@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![^\W_])")
#: Written so that no machine should read it: `ada (at) example (dot) org`.
_SPELT_AT = re.compile(r"[(\[{<] ?[aA][tT] ?[)\]}>]")
_SPELT_EMAIL = re.compile(
    r"(?<![\w.%+'-])[\w.%+'-]{1,64}+ {0,2}[(\[{<] ?at ?[)\]}>] {0,2}[^\W_][\w-]{0,61}+"
    r"(?:(?:\.| {0,2}[(\[{<] ?dot ?[)\]}>] {0,2})[^\W_][\w-]{0,61}+){1,6}",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{16,}+"  # OpenAI, Anthropic, OpenRouter, Langfuse and those that copy them
    r"|gh[opsur]_[A-Za-z0-9]{30,}+|github_pat_[A-Za-z0-9_]{22,}+|gl(?:pat|dt|rt|ptt|soat|cbt)-[A-Za-z0-9_-]{20,}+"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|AIza[0-9A-Za-z_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,}+|ya29\.[A-Za-z0-9_-]{20,}+"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}+|xapp-[0-9]-[A-Za-z0-9-]{20,}+"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}+|whsec_[A-Za-z0-9+/=]{20,}+"
    r"|hf_[A-Za-z0-9]{30,}+|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}+|rubygems_[a-f0-9]{40,}+"
    r"|SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+|SK[0-9a-f]{32}(?![0-9A-Za-z])|key-[0-9a-f]{32}(?![0-9A-Za-z])"
    r"|do[por]_v1_[a-f0-9]{40,}+|dapi[0-9a-f]{32}(?![0-9A-Za-z])|sq0(?:atp|csp)-[A-Za-z0-9_-]{20,}+"
    r"|(?:gsk_|pplx-|xai-|r8_|tvly-|nvapi-|fw_|pcsk_|csk-|jina_)[A-Za-z0-9_-]{20,}+"
    r"|lsv2_(?:pt|sk)_[A-Za-z0-9_]{20,}+|pk-lf-[A-Za-z0-9-]{16,}+"
    r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|lin_api_[A-Za-z0-9]{30,}+|ntn_[A-Za-z0-9]{30,}+|figd_[A-Za-z0-9_-]{30,}+"
    r"|gl(?:sa|c)_[A-Za-z0-9+/=_]{30,}+|NRAK-[A-Z0-9]{20,}+|sntry[su]_[A-Za-z0-9+/=_]{30,}+|pscale_tkn_[\w.-]{20,}+"
    r"|dckr_pat_[A-Za-z0-9_-]{20,}+|dp\.(?:pt|st|ct)\.[A-Za-z0-9.]{30,}+|hv[sbr]\.[A-Za-z0-9_-]{20,}+"
    r"|sbp_[a-f0-9]{40}|PMAK-[a-f0-9-]{40,}+|tskey-[a-z]{2,8}-[A-Za-z0-9-]{16,}+|AGE-SECRET-KEY-1[0-9A-Z]{50,}+"
    r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"  # Telegram
    r"|(?<![_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+"  # JSON web token
    r")"
)
#: An address that whoever has it may post to: the path is the secret.
_HOOK = re.compile(
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/|\.webhook\.office\.com/)"
    r"([A-Za-z0-9_/@-]{16,}+)"
)
_BEARER = re.compile(
    r"(?<![A-Za-z0-9])(?:bearer|basic)(?>(?:[ \t]|%20|\+){1,4})([A-Za-z0-9._~+/=-]{16,}+)", re.IGNORECASE
)
_NO_WORDS = re.compile(r"[0-9=]")
_AUTHORIZATION = re.compile(
    r"\bauthorization[\"']?[ \t]{0,3}[:=][ \t]{0,3}[\"']?(?:(?:token|apikey|api-key|bot|key|hmac|digest)[ \t]{1,3})?"
    r"([A-Za-z0-9._~+/=:-]{12,}+)",
    re.IGNORECASE,
)
#: A name that says that what is given to it is a secret. What comes before it (`DB_`, `x-`) is no matter.
_TELLING: Final = (
    r"(?:passw(?:or)?d|passphrase|passwort|contrase\u00f1a|mot de passe"
    r"|(?<![A-Za-z0-9])(?:pwd|secret(?:[_-]?(?:access[_-]?)?(?:key|token))?|token)"
    r"|(?:client|app|consumer|webhook|signing|jwt)[_-]?secret"
    r"|(?:api|private|account|access|signing|encryption|master|auth|service|subscription|function)[_-]?key"
    r"|(?:access|auth|refresh|session|bearer|api|id|csrf|security)[_-]?token)"
)
_ASSIGNED = re.compile(
    _TELLING + r"(?![A-Za-z0-9])\\?[\"']?(?:[ \t]{0,3}(?:=>|:=|[:=])[ \t]{0,3}|[ \t](?:is|was|lautet)[: \t][ \t]{0,2})"
    r"\\?[\"']?((?>(?:[^\s\"',;\\]|\\(?![\"'])){8,}))",
    re.IGNORECASE,
)
#: What a password has and a word or the name of a variable has not.
_STRONG = re.compile(r"[0-9]|[!@#$%^&*~+](?=.)")
#: Within so many characters of its end a value may hold the name of the next.
_NAME_CHARACTERS: Final = 64
_NAMED = re.compile(
    r"(?:^|[^a-z0-9])" + _TELLING + r"(?:(?<!token)s|[_-]?(?:confirm(?:ation|ed)?|again|repeat(?:ed)?|[0-9]{1,2}))?$"
    r"|^(?:proxy-)?authorization$|cookies?$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: The signature of a URL that opens what it names.
_SIGNED = re.compile(
    r"[?&](?:sig|signature|x-amz-signature|x-goog-signature|key|auth|apikey)=([A-Za-z0-9%._~+/=-]{16,}+)",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@?#]{0,256}+:[^\s/@?#]{1,256}+(?=@)")
_BEGIN_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_END_KEY = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
# These begin with their first character and look behind it only then: the search for that one is fast.
_IPV4 = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\.?\w)")
_VERSION = re.compile(r"\b(?:version|release|firmware|ver\.?|build)[ :=]$", re.IGNORECASE)
_IPV6 = re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f:]{1,38}+(?![\w:])")
_PHONE = re.compile(
    r"[+(0-9](?<![\w.+/-].)(?![0-9][/-][0-9]{2}[/-][0-9]{4}(?![0-9]))(?:"  # and not a date
    r"(?:(?<=\+)|(?<=0)0)[1-9][0-9]{0,2}+(?>(?:[ \u00a0./-]?+\(?+[0-9]{1,5}+\)?+){2,6})"  # international
    r"|(?:(?<=\()|(?<=[178])[ .-]?\()(?!(?:19|20)[0-9]{2}\))[0-9]{2,5}\)(?>(?:[ ./-]?+[0-9]{1,5}+){1,5})"  # (area)
    r"|(?:(?<=[2-9])|(?<=1)[ .-][2-9])[0-9]{2}([ .-])[0-9]{3}\1[0-9]{4}"  # North America
    r"|(?<=0)[1-9][0-9]{0,4}+(?>(?:[ /-][0-9]{2,8}+){1,5})"  # national, with its leading 0
    r"|(?<=0)[1-9](?:\.[0-9]{2}){4}"  # France
    r"|(?<=1)[3-9][0-9]([ -])[0-9]{4}\2[0-9]{4}"  # China, mobile
    r"|(?<=[1-9])[1-9] 9[0-9]{4}-[0-9]{4}"  # Brazil, mobile
    r"|(?<=[6-9])[0-9]{4} [0-9]{5}"  # India, mobile
    r")(?![\w-]|:[0-9])"
)
#: Any digits that could be a phone number, where the words before them say so.
_CALLED = re.compile(r"[0-9](?<![\w.+/-].)(?:[ \u00a0()./-]{0,2}+[0-9]){6,14}(?![\w-]|:[0-9]|[.,][0-9])")
_CALLS = re.compile(
    r"(?:\b(?:phone|(?:tele|smart|mobil)?(?:ph|f)one?|telefon[eo]?(?:nummer)?|tel|mobile?|cell|fax|whatsapp|call|dial|text"
    r"|ring|sms|handy|m[o\u00f3]vil|t[e\u00e9]l|portable|celular|hotline)|\u96fb\u8a71|\u7535\u8bdd|\u624b\u673a)"
    r"(?: ?(?:number|no|nr|is|at|on|me|us|ist|him|her|them)\b){0,3}[ \t.:#=\"'(>-]{0,6}$",
    re.IGNORECASE,
)
#: A number of so many digits may be that of a card or an account.
_LONG_NUMBER: Final = 10**11
#: How many characters of a text are looked at in one go, and how many on either side of them decide.
_WINDOW: Final = 16_384
_AROUND: Final = 2_048
#: No card, phone number or IPv4 address is in a text in which this finds nothing.
_DIGITS = re.compile(r"[0-9][0-9 \u00a0()./-]{5}")
#: Likewise for tokens, and for what follows a key word.
_TOKEN_SIGNS: Final = (
    "sk-", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "AKIA", "ASIA", "AIza", "GOCSPX-", "ya29.", "xox",
    "xapp-", "_live_", "_test_", "whsec_", "hf_", "npm_", "pypi-", "rubygems_", "SG.", "SK", "key-", "_v1_", "dapi",
    "sq0", "gsk_", "pplx-", "xai-", "r8_", "tvly-", "nvapi-", "fw_", "pcsk_", "csk-", "jina_", "lsv2_", "-lf-", "shp",
    "lin_api_", "ntn_", "figd_", "glpat-", "gldt-", "glrt-",
    "glptt-", "glsoat-", "glcbt-", "glsa_", "glc_", "NRAK-", "sntry", "pscale_tkn_", "dckr_pat_", "dp.",
    "hvs.", "hvb.", "hvr.",
    "sbp_", "PMAK-", "tskey-", "AGE-SECRET", ":AA", "eyJ",
)  # fmt: skip
#: The same by a character of each that texts seldom hold: to find that it is absent takes almost no time.
_MARKS: Final = "_JKZGPN290-:x.SpAy"
_SIGNS_BY_MARK: Final = tuple(
    (mark, signs)
    for mark in _MARKS
    if (signs := tuple(sign for sign in _TOKEN_SIGNS if next((m for m in _MARKS if m in sign), sign[0]) == mark))
)
_KEY_WORDS: Final = (
    "bearer", "basic", "passw", "pwd", "secret", "key", "token", "authorization", "phrase", "contrase", "mot de",
)  # fmt: skip


class Redactor:
    """Replaces what it finds in every text of a record by its kind in brackets: `[email]`, `[secret]` and so on.

    A value whose key says what it is (`password`, `api_key`) goes as a whole, and so do the lines of a private key that
    a list holds one by one.

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
        kinds: Collection[Kind] = (
            "secret",
            "email",
            "ip",
            "iban",
            "card",
            "national_id",
            "phone",
        ),
        extra: Mapping[str, str | re.Pattern[str]] | None = None,
    ) -> None:
        if unknown := sorted(set(kinds) - set(_REDACTIONS)):
            raise SettingsError(f"redaction: {', '.join(unknown)} is not one of {', '.join(_REDACTIONS)}")
        self._own: list[tuple[str, re.Pattern[str]]] = []
        for name, pattern in (extra or {}).items():
            try:
                self._own.append((f"[{name}]", re.compile(pattern)))
            except re.error as error:
                raise SettingsError(f"redaction: pattern {name}: {error}") from error
        # In this order: a token may hold digits that look like a phone number, an account number those of a card.
        self._steps = [
            (f"[{kind}]", find) for kind, finders in _REDACTIONS.items() if kind in kinds for find in finders
        ]
        self._hides_secrets = "secret" in kinds

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
        for by, pattern in self._own:
            text = pattern.sub(lambda _, by=by: by, text)  # type: ignore[misc]
        for by, find in self._steps:
            if spans := list(_by_windows(find, text)):
                text = _replaced(text, spans, by)
        if self._steps and _folding.needed(text):
            folded = _folding.Folded(text)
            for by, find in self._steps:
                if spans := list(_by_windows(find, folded.text)):
                    folded.replace(spans, by)
            text = folded.source()
        return text

    def _optional(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)

    def _nested(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._nested(key): self._named(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return self._lines(value)
        if isinstance(value, int) and abs(value) >= _LONG_NUMBER:
            return value if (redacted := self.text(text := str(value))) == text else redacted
        return value

    def _named(self, key: Any, value: Any) -> Any:
        """What stands under a key: all of it is secret where the key says so."""
        name = str(key)[-100:]
        if self._hides_secrets and _NAMED.search(_CAMEL.sub("_", name)):
            # A number under such a key is more likely a count of tokens.
            return self._secret(value, numbers=not name.lower().endswith("token"))
        return self._nested(value)

    def _secret(self, value: Any, *, numbers: bool) -> Any:
        """The value with every text in it hidden, and every number; what is shorter than four characters is none."""
        if isinstance(value, Mapping):
            return {self._nested(key): self._secret(item, numbers=numbers) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._secret(item, numbers=numbers) for item in value]
        is_one = isinstance(value, str) or (numbers and isinstance(value, int | float) and not isinstance(value, bool))
        return "[secret]" if is_one and len(str(value)) > 3 else value

    def _lines(self, items: Iterable[Any]) -> list[Any]:
        redacted: list[Any] = []
        inside = False
        for item in items:
            if not (self._hides_secrets and isinstance(item, str)):
                redacted.append(self._nested(item))
                continue
            begins = list(_BEGIN_KEY.finditer(item))
            end = _END_KEY.search(item)
            if inside and end is None:
                redacted.append("[secret]")
                continue
            redacted.append(self.text("[secret]" + item[end.end() :] if inside and end is not None else item))
            inside = bool(begins) and _END_KEY.search(item, begins[-1].end()) is None
        return redacted


def hash_user_id(user_id: str, salt: str | bytes) -> str:
    """HMAC-SHA256 of the id under the salt, the first 16 bytes in hex: the same user, unknown.

    Keep the salt secret and the same in every process: who has it can try all the ids they know of.
    """
    key = salt.encode() if isinstance(salt, str) else salt
    return hmac.new(key, user_id.encode(errors="replace"), hashlib.sha256).digest()[:16].hex()


def _replaced(text: str, spans: Iterable[Span], by: str) -> str:
    kept, at = [], 0
    for start, end in spans:
        kept += [text[at:start], by]
        at = end
    return "".join([*kept, text[at:]])


def _by_windows(find: _Finder, text: str) -> Iterator[Span]:
    """What `find` finds in the text, of which it sees no more at once than it takes little time for.

    While a pattern runs no other thread of the app does.
    """
    at, window = 0, _WINDOW
    while at < len(text):
        begin, last, end = max(0, at - _AROUND), at + window, at + window + _AROUND
        found = [(start + begin, stop + begin) for start, stop in find(text[begin:end])]
        found = [(max(at, start), stop) for start, stop in found if stop > at and start < last]
        if end < len(text) and any(stop >= end for _, stop in found):
            # It may go on behind what was seen.
            window *= 4
            continue
        yield from found
        at, window = max([last, *(stop for _, stop in found)]), _WINDOW


def _private_keys(text: str) -> Iterator[Span]:
    """Each key block from its first line to its last; one without an end runs to the end of the text."""
    if "PRIVATE KEY" not in text:
        return
    at = 0
    while begin := _BEGIN_KEY.search(text, at):
        end = _END_KEY.search(text, begin.end())
        at = len(text) if end is None else end.end()
        yield begin.start(), at


def _tokens(text: str) -> Iterator[Span]:
    if any(mark in text and any(sign in text for sign in signs) for mark, signs in _SIGNS_BY_MARK):
        yield from (found.span() for found in _TOKEN.finditer(text))


def _after_words(pattern: re.Pattern[str], is_one: re.Pattern[str] | None = None) -> _Finder:
    """What the pattern says is the value of a key word, where `is_one` finds anything in it."""

    def find(text: str) -> Iterator[Span]:
        lower = text.lower()
        if not any(word in lower for word in _KEY_WORDS):
            return
        at = 0
        while found := pattern.search(text, at):
            start, at = found.span(1)
            if is_one is None or is_one.search(found[1]):
                yield start, at
            else:
                # No part of it is one either; but its end may be the name of what comes next.
                at = max(start, at - _NAME_CHARACTERS)

    return find


def _in_urls(text: str) -> Iterator[Span]:
    if "://" in text:
        yield from (found.span() for found in _URL_PASSWORD.finditer(text))


def _hooks(text: str) -> Iterator[Span]:
    if "hook" in text:
        yield from (found.span(1) for found in _HOOK.finditer(text))


def _signed(text: str) -> Iterator[Span]:
    if "=" in text and ("?" in text or "&" in text):
        yield from (found.span(1) for found in _SIGNED.finditer(text))


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (found.span() for found in _EMAIL.finditer(text))


def _spelt_emails(text: str) -> Iterator[Span]:
    if _SPELT_AT.search(text):
        yield from (found.span() for found in _SPELT_EMAIL.finditer(text))


def _ipv4(text: str) -> Iterator[Span]:
    if _DIGITS.search(text):
        for found in _IPV4.finditer(text):
            if all(int(part) < 256 for part in found[0].split(".")) and not _VERSION.search(
                text[max(0, found.start() - 12) : found.start()]
            ):
                yield found.span()


def _ipv6(text: str) -> Iterator[Span]:
    if ":" in text:
        yield from (found.span() for found in _IPV6.finditer(text) if _is_ipv6(found[0]))


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


def _cards(text: str) -> Iterator[Span]:
    if _DIGITS.search(text):
        yield from cards(text)


def _phones(text: str) -> Iterator[Span]:
    if _DIGITS.search(text):
        for found in _PHONE.finditer(text):
            yield from _numbers(found[0], found.start())


def _numbers(run: str, start: int) -> Iterator[Span]:
    """A number has 8 to 15 digits; more than that is a number with others after it."""
    while True:
        number = run
        while sum(character.isdigit() for character in number) > 15:
            cut = max(number.rfind(separator) for separator in " \u00a0./-")
            if cut < 0:
                return
            number = number[:cut]
        if sum(character.isdigit() for character in number) < 8:
            return
        yield start, start + len(number)
        after = _PHONE.search(run, len(number))
        if after is None:
            return
        run, start = run[after.start() :], start + after.start()


def _called_phones(text: str) -> Iterator[Span]:
    if _DIGITS.search(text):
        for found in _CALLED.finditer(text):
            start = found.start()
            if _CALLS.search(text[max(0, start - 40) : start]):
                yield found.span()


_REDACTIONS: Final[dict[str, tuple[_Finder, ...]]] = {
    "secret": (
        _private_keys, _tokens, _after_words(_BEARER, _NO_WORDS),
        _after_words(_AUTHORIZATION), _after_words(_ASSIGNED, _STRONG), _in_urls,
        _hooks, _signed,
    ),
    "email": (_emails, _spelt_emails),
    "ip": (_ipv4, _ipv6),
    "iban": (ibans,),
    "card": (_cards,),
    "national_id": (national_ids,),
    "phone": (_phones, _called_phones),
}  # fmt: skip
