"""What servers quote of us when they refuse: our credentials, and the texts that we sent. Neither is repeated.

Reasons and messages are stored, logged and sent to sinks, none of which is a place for either. Standard library only.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: What stands in the place of a credential, as redaction writes it.
SECRET: Final = "[secret]"  # noqa: S105 - it is none
#: What stands in the place of a text.
TEXT: Final = "[text]"

#: What is shorter would be found in ordinary words.
_LEAST_SECRET: Final = 4
#: By so many characters a credential is known that was cut.
_BEGINNING: Final = 12
#: Letters and digits in a row by which a text is known again: in its midst; as a whole, or where the message was cut.
_LEAST_RUN: Final = 20
_LEAST_WHOLE: Final = 8
#: Characters from which on a message is taken to be cut.
_CUT: Final = 200
#: Of all texts together; more is not looked into.
_MOST_CHARACTERS: Final = 4_000_000
#: A letter or digit of a message, written as it is or as JSON escapes it; other escapes count as nothing.
_SIGN = re.compile(r"\\+u([0-9a-fA-F]{4})|\\+[nrtbf]|([^\W_])")
_NO_SIGN = re.compile(r"[\W_]+")


class Credentials:
    """What authenticates us to one server, in every form that it could quote. Thread-safe.

    Args:
        secrets: keys, tokens, values of headers; None and what is shorter than 4 characters are no secrets.
        url: the user and the password that it holds are secret too.
        login: user and password that are sent by HTTP Basic; the user alone is no secret.
    """

    def __init__(self, *secrets: str | None, url: str | None = None, login: tuple[str, str] | None = None) -> None:
        found = {part for secret in secrets if secret for part in (secret, secret.rpartition(" ")[2])}
        logins = [] if login is None else [login]
        held, at, _ = (url or "").partition("://")[2].partition("/")[0].rpartition("@")
        if at:
            user, _, password = held.partition(":")
            # As it is written there too, and alone where there is nothing but a user.
            found |= {held, password or user}
            logins.append((unquote(user), unquote(password)))
        for user, password in logins:
            whole = f"{user}:{password}"
            found |= {password or user, whole, b64encode(whole.encode()).decode()}
        forms = sorted({form for one in found for form in _forms(one)}, key=len, reverse=True)
        patterns = [re.escape(form) for form in forms]
        patterns += [
            re.escape(form[:_BEGINNING]) + r"[^\s\"'\\,;&<>]*+" for form in forms if len(form) >= _BEGINNING + 4
        ]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def hidden(self, text: str) -> str:
        """The text with `[secret]` in the place of each of them."""
        return text if self._pattern is None else self._pattern.sub(SECRET, text)


def _forms(secret: str) -> Iterator[str]:
    """A secret as others write it, where it is long enough to be one."""
    if len(secret) >= _LEAST_SECRET:
        in_json = json.dumps(secret)[1:-1]
        yield from (secret, quote(secret, safe=""), html.escape(secret), in_json, in_json.replace("/", "\\/"))


class Texts:
    """Texts that were sent to a server, so as to leave out of its answer what it quotes of them. Not thread-safe.

    A quotation is 20 letters and digits in a row that stand so in a text, whatever is between them (blanks, line ends,
    quotes, JSON's escapes); or 8 where they are a whole text, or where a long message ends.
    """

    def __init__(self, texts: Iterable[str | None]) -> None:
        self._texts = texts
        self._known: list[str] | None = None
        self._whole = ""
        self._short: list[str] = []

    def hidden(self, message: str) -> str:
        """The message with `[text]` in the place of each quotation."""
        signs = [
            (found.span(), chr(int(found[1], 16)) if found[1] else found[2])
            for found in _SIGN.finditer(message)
            if found[1] or found[2]
        ]
        said = "".join(sign for _, sign in signs)
        if len(said) < _LEAST_WHOLE:
            return message
        self._read()
        least = _LEAST_WHOLE if len(message) >= _CUT else _LEAST_RUN
        kept, at, index = [], 0, 0
        while index < len(said):
            end = self._end_of_quotation(said, index, least)
            if end == index:
                index += 1
                continue
            kept += [message[at : signs[index][0][0]], TEXT]
            at, index = signs[end - 1][0][1], end
        return "".join([*kept, message[at:]])

    def _read(self) -> None:
        """Keep the letters and digits of each text."""
        if self._known is not None:
            return
        known: dict[str, None] = {}
        room = _MOST_CHARACTERS
        for text in self._texts:
            if text and room > 0:
                known.setdefault(_NO_SIGN.sub("", text[:room]))
                room -= len(text)
        self._known = [text for text in known if len(text) >= _LEAST_WHOLE]
        self._whole = "\0".join(self._known)
        self._short = [text for text in self._known if len(text) < _LEAST_RUN]

    def _end_of_quotation(self, said: str, start: int, least: int) -> int:
        """Of one that begins at `start`; `start` itself when there is none."""
        whole = self._whole
        place = whole.find(said[start : start + _LEAST_RUN])
        if place >= 0 and len(said) - start >= least:
            end = start
            while end < len(said) and place < len(whole) and said[end] == whole[place]:
                end, place = end + 1, place + 1
            return end
        return start + max((len(text) for text in self._short if said.startswith(text, start)), default=0)
