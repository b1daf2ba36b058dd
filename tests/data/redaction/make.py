"""The corpus that redaction is measured with. All of it is synthetic: made here from a seed, of nobody.

Not kept as text: what looks like the key of a provider would set off every scanner of repositories that sees it.
`python tests/data/redaction/make.py` prints it, one JSON object a line: the text, its spans (start, end, kind) and the
form it is written in. A text without spans is a hard negative: it looks like personal data and is none.
"""

# ruff: noqa: E501 - the tables are easier to read so

from __future__ import annotations

import base64
import json
import random
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass

LETTERS, DIGITS, ALNUM = string.ascii_letters, string.digits, string.ascii_letters + string.digits
HEX, UPPER, WORD = "0123456789abcdef", string.ascii_uppercase, ALNUM + "_-"
SEED = 20_261


@dataclass(frozen=True)
class Case:
    """One text. A span is found when nothing of it is left."""

    text: str
    spans: tuple[tuple[int, int, str], ...]
    form: str


class _Maker:
    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.cases: list[Case] = []

    def some(self, alphabet: str, n: int) -> str:
        return "".join(self.random.choice(alphabet) for _ in range(n))

    def key(self, alphabet: str, n: int) -> str:
        """Random characters with a digit and a letter among them, as any real key has."""
        return self.some(alphabet, n - 2) + "a7" if "a" in alphabet else self.some(alphabet, n - 1) + "7"

    def filled(self, pattern: str) -> str:
        """`#` becomes a digit, `N` one that is not 0 or 1."""
        return "".join(
            self.random.choice(DIGITS) if c == "#" else self.random.choice("23456789") if c == "N" else c
            for c in pattern
        )

    def add(self, before: str, value: str, after: str, kind: str, form: str = "plain") -> None:
        start = len(before)
        self.cases.append(Case(before + value + after, ((start, start + len(value), kind),), form))

    def none(self, text: str) -> None:
        self.cases.append(Case(text, (), "negative"))


AROUND = [
    ("", ""), ("My details: ", "."), ("please use ", " for this, thanks"), ('{"value": "', '", "n": 3}'), ("(", ")"),
    ("as I said:\n", "\nand so on"), ("the customer wrote <", "> twice"), ("- ", "\n- next"), ("'", "'"),
]  # fmt: skip


def _tokens(m: _Maker) -> list[str]:
    k = m.key
    return [
        "sk-" + k(ALNUM, 48), "sk-proj-" + k(WORD, 64), "sk-ant-api03-" + k(WORD, 80), "sk-or-v1-" + k(HEX, 64),
        "sk-lf-" + k(HEX, 36), "ghp_" + k(ALNUM, 36), "gho_" + k(ALNUM, 36), "ghs_" + k(ALNUM, 36),
        "github_pat_" + k(ALNUM, 22) + "_" + k(ALNUM, 59), "glpat-" + k(WORD, 20), "AKIA" + m.some(UPPER + "234567", 16),
        "ASIA" + m.some(UPPER + "234567", 16), "AIza" + k(WORD, 35), "GOCSPX-" + k(WORD, 28), "ya29." + k(WORD, 60),
        "xoxb-" + m.some(DIGITS, 12) + "-" + m.some(DIGITS, 12) + "-" + k(ALNUM, 24), "xoxp-" + k(ALNUM, 40),
        "xapp-1-" + k(ALNUM, 40), "sk_live_" + k(ALNUM, 24), "rk_test_" + k(ALNUM, 24), "whsec_" + k(ALNUM, 32),
        "hf_" + k(LETTERS, 34), "npm_" + k(ALNUM, 36), "pypi-" + k(WORD, 150), "SG." + k(WORD, 22) + "." + k(WORD, 43),
        "SK" + k(HEX, 32), "key-" + k(HEX, 32), "dop_v1_" + k(HEX, 64), "dapi" + k(HEX, 32), "gsk_" + k(ALNUM, 52),
        "pplx-" + k(ALNUM, 48), "xai-" + k(ALNUM, 80), "r8_" + k(ALNUM, 37), "tvly-" + k(ALNUM, 32),
        "nvapi-" + k(WORD, 64), "lsv2_pt_" + k(HEX, 32) + "_" + k(HEX, 10), "shpat_" + k(HEX, 32),
        "lin_api_" + k(ALNUM, 40), "ntn_" + k(ALNUM, 43), "figd_" + k(WORD, 40), "glsa_" + k(ALNUM, 32) + "_" + k(HEX, 8),
        "NRAK-" + m.some(UPPER + DIGITS, 27), "dckr_pat_" + k(WORD, 27), "hvs." + k(WORD, 90), "sbp_" + k(HEX, 40),
        "PMAK-" + k(HEX, 24) + "-" + k(HEX, 34), "tskey-auth-" + k(ALNUM, 17) + "-" + k(ALNUM, 32),
        "AGE-SECRET-KEY-1" + m.some(UPPER + DIGITS, 58), m.some("123456789", 10) + ":AA" + k(WORD, 33), _jwt(m),
    ]  # fmt: skip


def _jwt(m: _Maker) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': m.some(DIGITS, 8)})}.{m.key(WORD, 43)}"


def _key_block(m: _Maker, kind: str, end: str = "\n") -> str:
    body = end.join(m.some(ALNUM + "+/", 64) for _ in range(4))
    return f"-----BEGIN {kind}PRIVATE KEY-----{end}{body}{end}-----END {kind}PRIVATE KEY-----"


def _secrets(m: _Maker) -> None:
    for turn in range(2):
        for index, token in enumerate(_tokens(m)):
            before, after = AROUND[(index + turn) % len(AROUND)]
            m.add(before, token, after, "secret")
    named = [
        ("password: ", ""), ("Password=", " ok"), ('"password": "', '"'), ("DB_PASSWORD=", "\n"), ("pwd=", ";"),
        ("aws_secret_access_key = ", "\n"), ("client_secret: '", "'"), ("apiKey: \"", "\","), ("API_KEY=", " x"),
        ("X-Api-Key: ", "\n"), ("access_token=", "\n"), ("refresh_token: ", ""), ("my password is ", " since May"),
        ("AccountKey=", ";EndpointSuffix=x"), ("SharedAccessKey=", ";"), ("secret => '", "'"), ("auth_token := \"", "\""),
        ("{\\\"api_key\\\": \\\"", "\\\"}"), ("--api-key=", " run"), ("Authorization: Token ", "\n"),
        ("'Authorization': 'Bearer ", "'"), ("authorization: Basic ", "\n"), ("-H 'Authorization: ApiKey ", "'"),
        ("https://store.example/a?sig=", ""), ("https://api.example/v1?key=", "&q=tea"), ("webhook_secret: ", "\n"),
        ("https://hooks.slack.com/services/", " is it"), ("https://discord.com/api/webhooks/", "\n"),
    ]  # fmt: skip
    for before, after in named:
        for length in (20, 40):
            m.add(before, m.key(ALNUM, length), after, "secret")
    for scheme in ("postgresql", "redis", "https", "amqp", "mongodb+srv", "mysql"):
        for user in ("app", "", "svc-1"):
            m.add(f"{scheme}://{user}:", m.key(ALNUM + "$!*", 14), "@db.example.internal/x", "secret", "url")
    for kind in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", "DSA "):
        for end in ("\n", "\r\n", "\\n", " "):
            m.add("key:" + end, _key_block(m, kind, end), end + "done", "secret", "multi-line")


NAMES = ["ada.lovelace", "j_doe", "o'neil", "maria", "x+tag", "li.wei", "info", "a", "first.last-3", "support99"]
HOSTS = ["example.com", "mail.example.org", "b\u00fccher.example", "sub.dept.example.co.uk", "x1.example.dev"]


def _emails(m: _Maker) -> None:
    addresses = [f"{name}@{host}" for name in NAMES for host in HOSTS]
    for index, address in enumerate(addresses):
        before, after = AROUND[index % len(AROUND)]
        m.add(before, address.upper() if index % 9 == 4 else address, after, "email")
    for address in addresses[::2]:
        user, _, host = address.partition("@")
        m.add("write to ", f"{user} (at) {host.replace('.', ' (dot) ')}", ", ok", "email", "spelt out")
        m.add("mailto=", address.replace("@", "%40"), "&x=1", "email", "percent")
        m.add("<p>", address.replace("@", "&#64;").replace(".", "&#46;"), "</p>", "email", "html")
        m.add('{"a": "', address.replace("@", "\\u0040"), '"}', "email", "json")
        m.add("mail: ", address.replace("@", "\u200b@\u200b"), ".", "email", "zero-width")
        m.add("from **", address, "_** and", "email", "markdown")


def _ips(m: _Maker) -> None:
    for index in range(70):
        before, after = AROUND[index % len(AROUND)]
        m.add(
            before, f"{m.random.choice(('192.0.2', '198.51.100', '203.0.113'))}.{m.random.randrange(256)}", after, "ip"
        )
        tail = [f"{m.random.randrange(1, 65536):x}" for _ in range(6)]
        shape = ("2001:db8:" + ":".join(tail), f"2001:db8::{tail[0]}", f"fe80::{tail[0]}:{tail[1]}", "2001:0db8::1")
        m.add(before, shape[index % 4], after, "ip")
    for index in range(20):
        m.add(
            "from ", "".join(chr(0xFF10 + int(c)) if c.isdigit() else c for c in f"192.0.2.{index}"), "", "ip", "digits"
        )


def _check(digits: str) -> str:
    for last in DIGITS:
        values = [int(d) for d in digits + last]
        doubled = [v * 2 - 9 if v > 4 else v * 2 for v in values[-2::-2]]
        if (sum(values[-1::-2]) + sum(doubled)) % 10 == 0:
            return digits + last
    raise AssertionError


def _cards(m: _Maker) -> None:
    kinds = [
        ("4", 16),
        ("51", 16),
        ("2221", 16),
        ("6011", 16),
        ("37", 15),
        ("36", 14),
        ("35", 16),
        ("50", 16),
        ("4", 13),
    ]
    for turn in range(10):
        for index, (prefix, length) in enumerate(kinds):
            card = _check(prefix + m.some(DIGITS, length - 1 - len(prefix)))
            if length == 16 and turn % 3:
                gap = " " if turn % 3 == 1 else "-"
                card = gap.join(card[at : at + 4] for at in range(0, 16, 4))
            elif length == 15 and turn % 3:
                card = f"{card[:4]} {card[4:10]} {card[10:]}"
            before, after = AROUND[(turn + index) % len(AROUND)]
            m.add(before, card, after, "card")
    for _ in range(12):
        card = _check("4" + m.some(DIGITS, 14))
        m.add("card ", "".join(chr(0x0660 + int(c)) for c in card), "", "card", "digits")
        m.add("card ", "\u200b".join(card[at : at + 4] for at in range(0, 16, 4)), "", "card", "zero-width")
        m.add("card=", "%20".join(card[at : at + 4] for at in range(0, 16, 4)), "", "card", "percent")
        grouped = " ".join(card[at : at + 4] for at in range(0, 16, 4))
        m.add("card ", grouped, m.filled(" 0N/2# cvv ###"), "card", "numbers after")
        m.add("card ", grouped.replace(" ", "-"), m.filled("-###"), "card", "numbers after")
        m.add("take ", grouped, m.filled(" N# euros"), "card", "numbers after")


def _mod97(country: str, bban: str) -> str:
    number = "".join(str(int(c, 36)) for c in bban + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{bban}"


def _ibans(m: _Maker) -> None:
    shapes = [("DE", "#" * 18), ("FR", "#" * 23), ("GB", "NWBK" + "#" * 14), ("NL", "ABNA" + "#" * 10), ("ES", "#" * 20),
              ("IT", "X" + "#" * 22), ("BE", "#" * 12), ("CH", "#" * 17), ("PL", "#" * 24), ("SE", "#" * 20),
              ("NO", "#" * 11), ("PT", "#" * 21), ("IE", "AIBK" + "#" * 14), ("AT", "#" * 16), ("TR", "#" * 22)]  # fmt: skip
    for turn in range(7):
        for index, (country, shape) in enumerate(shapes):
            iban = _mod97(country, m.filled(shape))
            if turn % 2:
                iban = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))
            before, after = AROUND[(turn + index) % len(AROUND)]
            m.add(before, iban, after, "iban")
    for country, shape in shapes:
        first, second = (_mod97(country, m.filled(shape)) for _ in range(2))
        at = len(first) + 1
        spans = ((0, len(first), "iban"), (at, at + len(second), "iban"))
        m.cases.append(Case(f"{first} {second} both", spans, "side by side"))


def _national_ids(m: _Maker) -> None:
    from assay import _identifiers as known

    def until(make: Callable[[], str], good: Callable[[str], bool]) -> str:
        while not good(value := make()):
            pass
        return value

    def date() -> str:
        return f"{m.random.randrange(100):02d}{m.random.randrange(1, 13):02d}{m.random.randrange(1, 29):02d}"

    makers: list[Callable[[], str]] = [
        lambda: (
            f"{m.random.randrange(1, 600) or 1:03d}-{m.random.randrange(1, 100):02d}-{m.random.randrange(1, 9999):04d}"
        ),
        lambda: m.some("ABCEHJLMPRSTWXY", 1) + m.some("ABCEHJLMPRSTWXYZ", 1) + m.filled("######") + m.some("ABCD", 1),
        lambda: "AB " + m.filled("## ## ##") + " C",
        lambda: until(lambda: m.filled("########") + m.some("TRWAGMYFPDXBNJZSQVHLCKE", 1), known._is_dni),
        lambda: until(lambda: "X" + m.filled("#######") + m.some("TRWAGMYFPDXBNJZSQVHLCKE", 1), known._is_dni),
        lambda: until(lambda: m.some(UPPER, 6) + m.filled("##A##H###") + m.some(UPPER, 1), known._is_fiscal_code),
        lambda: until(lambda: m.filled("###.###.###-##"), known._is_cpf),
        lambda: until(lambda: m.filled("N### #### ####"), known._verhoeff),
        lambda: until(lambda: m.filled("N## ### ###"), lambda text: known.luhn([int(c) for c in text if c != " "])),
        lambda: until(lambda: date() + m.filled("-####"), known._is_personnummer),
        lambda: until(
            lambda: m.filled("N#####19") + date() + m.filled("###") + m.some(DIGITS + "X", 1), known._is_resident_id
        ),
        lambda: until(lambda: f"2 {m.filled('##')} 07 {m.filled('## ### ###')} {m.filled('##')}", known._is_nir),
    ]
    for turn in range(9):
        for index, make in enumerate(makers):
            before, after = AROUND[(turn + index) % len(AROUND)]
            m.add(before, make(), after, "national_id")


PHONES = [
    "+1 (NNN) NNN-####", "+1-NNN-NNN-####", "(NNN) NNN-####", "NNN-NNN-####", "NNN.NNN.####", "+44 20 7### ####",
    "+44 7### ######", "020 7### ####", "07### ######", "+49 30 ########", "+49 (0)30 ######", "0170/#######", "0049 89 ######",
    "+33 1 ## ## ## ##", "01 ## ## ## ##", "06.##.##.##.##", "+34 6## ### ###", "+39 06 #### ####", "+31 6 ########",
    "06-########", "+46 70 ### ## ##", "08-### ### ##", "+47 ### ## ###", "+48 ### ### ###", "+41 44 ### ## ##",
    "+43 1 #######", "+351 9## ### ###", "+30 21# ### ####", "+7 9## ###-##-##", "8 (9##) ###-##-##", "+380 44 ### ## ##",
    "+91 98### #####", "98### #####", "+86 138 #### ####", "138 #### ####", "138-####-####", "+81 90-####-####",
    "03-####-####", "+82 10-####-####", "010-####-####", "+55 11 9####-####", "(11) 9####-####", "11 9####-####",
    "+52 55 #### ####", "+61 4## ### ###", "0412 ### ###", "(02) 9### ####", "+64 21 ### ###", "+27 82 ### ####",
    "+234 803 ### ####", "+254 7## ######", "+971 50 ### ####", "+966 5########", "+90 532 ### ## ##", "+972-5#-###-####",
    "+65 8### ####", "+62 812-####-####", "+63 917 ### ####", "+66 8# ### ####", "+84 9# ### ## ##", "+20 10 ########",
]  # fmt: skip
SAID = ["call me on ", "phone: ", "Tel. ", "WhatsApp ", "my mobile number is ", "Fax: ", "Handy: ", "m\u00f3vil: "]
BARE = ["NNNNNN####", "6## ### ###", "9### ####", "13#########", "NN ## ## ##", "55 #### ####", "9#########"]


def _phones(m: _Maker) -> None:
    for turn in range(2):
        for index, form in enumerate(PHONES):
            before, after = AROUND[(turn + index) % len(AROUND)]
            m.add(before, m.filled(form), after, "phone")
    for said in SAID:
        for form in BARE:
            m.add(said, m.filled(form), " after six", "phone")
    for _ in range(12):
        number = m.filled("+49 170 #######")
        m.add("tel=", number.replace("+", "%2B").replace(" ", "%20"), "", "phone", "percent")
        m.add("", number.replace(" ", "\u200b \u2060"), "", "phone", "zero-width")


def _negatives(m: _Maker) -> None:
    f = m.filled
    for _ in range(16):
        uuid = "-".join(m.some(HEX, n) for n in (8, 4, 4, 4, 12))
        for text in (
            f("order 10########"), f("Order no. ####-######-##"), f("version 2.1#.N"), f("v1.2.3-rc.#"), f("release 4.N.0.1#"),
            "commit " + m.some(HEX, 40), "sha256:" + m.some(HEX, 64), f"id {uuid}", f("2026-0N-1# at 1#:2#:3#"),
            f("on 1#/0N/2026"), f("due 05.0N.2026"), f("ISBN 978-3-16-14####-0"), f("ISBN 0-306-4####-N"), f("$1,2##,###.##"),
            f("EUR 1.2##.###,##"), f("52.5####, 13.4####"), f("at 48.8####N 2.3####E"), f("x[#] = y[1#] + 0x" + "dead##"),
            f("for i in range(1#, 2####): pass"), f("std::vector<int> a{#, #, 1#};"), f("10.N#/joss.0####"), f("invoice INV-2026-####"),
            f("part 12-N##-####A"), f("RFC N###, section 4.2.1"), f("pages 1##-2##"), f("17000#####"), f("3.14159#######"),
            f("score 0.9####, n=1####"), f("1## x 2## x 3##"), f("ratio 1:2#:3#"), f("aa:bb:cc:dd:ee:#f"), f("ETA 12:3#:4#"),
            f("chapter #.#.#.##.#"), "password: please reset it", "the token is expired", "Bearer of good news",
            "api_key: YOUR_KEY_HERE", "password=os.environ[name]", "user@localhost", "@handle said", "git@host:path",
            f("SKU 4########"), f("tracking 1Z N## ### 0# #### ###"), f("case 2026/00###"), f("flight LH N##, gate B1#"),
            f("rows 1000 2000 3000 4000 5##0"), f("call 3 functions 20 times"), f("ring buffer of 1048576 bytes"),
            f("text-davinci-00#"), "risk-assessment-for-2026-and-later", "task_live_updates_are_on", f("GL-N##-####"),
            f("IBAN DE00 1234 5678 9012 3456 ##"), f("card 4111 1111 1111 1112"), f("meet (at) noon. Dot was there"),
            f("1.2.3.4.#"), f("256.30#.1.1"), f("https://example.com/a:b@c/#"), f("ssn 000-1#-####"), f("AB-12-CD-##"),
        ):  # fmt: skip
            m.none(text)


def corpus() -> list[Case]:
    """The same cases each time, each text once."""
    maker = _Maker()
    for part in (_secrets, _emails, _ips, _cards, _ibans, _national_ids, _phones, _negatives):
        part(maker)
    return list({case.text: case for case in maker.cases}.values())


if __name__ == "__main__":
    for case in corpus():
        sys.stdout.write(json.dumps({"text": case.text, "spans": case.spans, "form": case.form}) + "\n")
