"""Numbers that carry check digits: payment cards, bank accounts (IBAN), national ids. Standard library only.

A check digit turns away nine numbers in ten that only look like one; two digits turn away 96 in 97. What has none here
has a form that little else has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Span = tuple[int, int]

_CARD = re.compile(
    r"[2-6](?<![\w.+-].)(?:"
    r"[0-9]{12,18}+"
    r"|[0-9]{3}([ \u00a0-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}(?:\1[0-9]{1,3})?"  # groups of four, the last of any length
    r"|[0-9]{3}([ \u00a0-])[0-9]{6}\2[0-9]{4,5}"  # 4-6-5 and 4-6-4
    r")(?!\w|-(?![0-9]{3,4}(?![\w-])))"  # a security code may follow a hyphen
)

#: Characters of an IBAN by country; SWIFT's registry of IBANs, release 99.
_IBAN_LENGTHS: Final = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip
_IBAN = re.compile(r"[A-Z](?<![\w-].)[A-Z][0-9]{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}")

#: Where one can begin: this begins with a plain class of characters, so that most of a text is passed over fast.
_BEGIN = re.compile(r"[0-9A-Z](?<![\w.+-].)(?=[0-9A-Z .-]{8})")
#: By form; what has check digits is looked at again.
_NATIONAL = re.compile(
    r"(?:"
    r"(?P<us>(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4})"
    r"|(?P<gb>(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
    r"|(?P<es>(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z])"
    r"|(?P<it>[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z])"
    r"|(?P<br>[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})"
    r"|(?P<in>[2-9][0-9]{3}(?P<gap>[ -])[0-9]{4}(?P=gap)[0-9]{4})"
    r"|(?P<ca>[1-79][0-9]{2}(?P<dash>[ -])[0-9]{3}(?P=dash)[0-9]{3})"
    r"|(?P<se>(?:19|20)?[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[-+][0-9]{4})"
    r"|(?P<cn>[1-9][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9X])"
    r"|(?P<fr>[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]) ?[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{2})"
    r")(?![\w-]|\.\w)"
)


def cards(text: str) -> Iterator[Span]:
    """Payment cards: 13 to 19 digits with the right check digit (Luhn, ISO/IEC 7812-1)."""
    for found in _CARD.finditer(text):
        number: str | None = found[0]
        while number is not None:
            digits = _digits(number)
            if 13 <= len(digits) <= 19 and luhn(digits):
                yield found.start(), found.start() + len(number)
                break
            # What looks like the last group may be the month of expiry, a security code or an amount.
            number = number.rpartition(found[1])[0] if found[1] and len(digits) > 13 else None


def ibans(text: str) -> Iterator[Span]:
    """Bank account numbers with their country's length and check digits (ISO 13616)."""
    at = 0
    while found := _IBAN.search(text, at):
        # Behind its end, or behind what is none, another may begin within what was matched.
        at = found.start() + 1
        length = _IBAN_LENGTHS.get(found[0][:2])
        if length is None:
            continue
        seen, end = 0, 0
        for end, character in enumerate(found[0], 1):  # noqa: B007 - where the account number ends
            seen += character.isalnum()
            if seen == length:
                break
        after = text[found.start() + end : found.start() + end + 1]
        if seen == length and not after.isalnum() and _is_iban(found[0][:end]):
            at = found.start() + end
            yield found.start(), at


def national_ids(text: str) -> Iterator[Span]:
    """National ids of ten countries, by form and, where they have any, check digits."""
    at = 0
    while begin := _BEGIN.search(text, at):
        found = _NATIONAL.match(text, begin.start())
        at = begin.end()
        if found is not None:
            checked = next(_CHECKS.get(country) for country in _COUNTRIES if found[country] is not None)
            if checked is None or checked(found[0]):
                at = found.end()
                yield found.span()


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1, annex B)."""
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _digits(text: str) -> list[int]:
    return [int(character) for character in text if character.isdigit()]


def _is_iban(text: str) -> bool:
    plain = "".join(character for character in text if character.isalnum())
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_dni(text: str) -> bool:
    """Spain, DNI and NIE: the letter is the number modulo 23."""
    plain = text.replace("-", "")
    number = {"X": "0", "Y": "1", "Z": "2"}.get(plain[0], plain[0]) + plain[1:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


_ODD: Final = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _is_fiscal_code(text: str) -> bool:
    """Italy, codice fiscale: decree of 23 December 1976, article 7."""
    values = [int(c) if c.isdigit() else ord(c) - 65 for c in text[:-1]]
    total = sum(_ODD[value] if place % 2 == 0 else value for place, value in enumerate(values))
    return chr(65 + total % 26) == text[-1]


def _is_cpf(text: str) -> bool:
    """Brazil: two digits, each the weighted sum of those before it modulo 11."""
    digits = _digits(text)
    if len(set(digits)) == 1:
        return False
    return all(
        sum(digit * weight for digit, weight in zip(digits, range(n + 1, 1, -1), strict=False)) * 10 % 11 % 10
        == digits[n]
        for n in (9, 10)
    )


#: Of the dihedral group of order ten: Verhoeff, "Error detecting decimal codes", 1969.
_PRODUCT: Final = tuple(
    tuple((a + b) % 5 if a < 5 and b < 5 else 5 + (a + b) % 5 if a < 5 else 5 + (a - b) % 5 if b < 5 else (a - b) % 5
          for b in range(10))
    for a in range(10)
)  # fmt: skip
_TURNS: Final = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _verhoeff(text: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(_digits(text))):
        for _ in range(place % 8):
            digit = _TURNS[digit]
        check = _PRODUCT[check][digit]
    return check == 0


def _is_personnummer(text: str) -> bool:
    return luhn(_digits(text)[-10:])


def _is_resident_id(text: str) -> bool:
    """China: GB 11643-1999, ISO 7064 MOD 11-2."""
    total = sum(int(c, 36) % 36 * (2 ** (17 - place) % 11) for place, c in enumerate(text[:-1]))
    return "10X98765432"[total % 11] == text[-1]


def _is_nir(text: str) -> bool:
    """France: the last two digits are 97 less the rest modulo 97."""
    digits = text.replace(" ", "")
    return 97 - int(digits[:-2]) % 97 == int(digits[-2:])


_COUNTRIES: Final = ("us", "gb", "es", "it", "br", "in", "ca", "se", "cn", "fr")
_CHECKS: Final[dict[str, Callable[[str], bool]]] = {
    "es": _is_dni,
    "it": _is_fiscal_code,
    "br": _is_cpf,
    "in": _verhoeff,
    "ca": lambda text: luhn(_digits(text)),
    "se": _is_personnummer,
    "cn": _is_resident_id,
    "fr": _is_nir,
}
