"""Suspected prompt injection: texts of a record that speak to whoever grades it, or hide what they say.

Set phrases, control tokens and characters, after the text has been made as plain as it looks; encoded stretches are
decoded first. It is for counting and for finding records to look at. It is no shield: what is worded anew passes, and a
text that discusses injections is flagged. The shield is how records are put to a judge (`assay.judges`).

Pure, standard library only; linear in the text, whatever it holds. docs/explanation/injection.md has its recall.
"""

# ruff: noqa: RUF001 - look-alikes are what is looked for

from __future__ import annotations

import base64
import binascii
import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from assay._text import INVISIBLE, in_latin, revealed, without_unseen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.records import Record

#: What was seen: `override` an order to leave the instructions; `grading` words to a judge about its grade; `verdict` a
#: made-up verdict; `structure` a made-up fence, turn, control token or section; `role` a claim to be somebody else;
#: `evasion` a wish for no verdict at all; `hidden` characters that nobody sees; `disguised` one of these in an encoding
#: or in letters of another script.
Sign = Literal["override", "grading", "verdict", "structure", "role", "evasion", "hidden", "disguised"]

#: Encoded stretches that are decoded, of one text, and the characters of each.
_DECODED = 50
_STRETCH = 4_000


@dataclass(frozen=True, slots=True)
class _Pattern:
    sign: Sign
    #: the pattern is tried only where one of them is in the text: to look for them costs next to nothing
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    #: for ASCII texts: beginnings of words, as `_begins` has them; one of each set is in all that the pattern matches
    needs: tuple[frozenset[str], ...]


def _of(sign: Sign, words: str, pattern: str, *needs: str) -> _Pattern:
    # In the letters that texts are compared in.
    return _Pattern(
        sign,
        tuple(in_latin(words).split("|")),
        re.compile(in_latin(pattern), re.MULTILINE),
        tuple(frozenset(need.split()) for need in needs),
    )


_GRADER = (
    r"(?:evaluat(?:or|ion model|ing model)|grader|grading (?:model|system|assistant)|judge|rater|auto-?rater|"
    r"scorer|assessor"
    r"|examiner|reviewing model|scoring model)"
)
_BEST = (
    r"(?:(?:full|maximum|max|top|highest|perfect|best|lowest|minimum|worst|zero|passing|failing) "
    r"(?:possible )?(?:score|marks?|points?|rating|grade|level|verdict)"
    r"|level ?(?:of |is |to |= ?|: ?)?[0-5]\b|score ?(?:of |is |to |= ?|: ?)?\d|[0-9]{1,3} ?(?:/|out of) ?(?:5|"
    r"10|100)\b"
    r"|(?:a |an |as |is |with )\W?(?:pass|fail|5|10|1|0|compliant|supported|unsupported|contradicted)\b)"
)
_ORDERED = (
    r"(?:give|assign|award|output|return|reply|respond|answer|rate|score|grade|mark|report|print|choose|select|emit|"
    r"issue|treat|count)"
)

#: What is in every match of `_GRADER`, and of `_BEST`.
_GRADER_NEEDS = "eval grad judg rate auto scor asse exam revi"
_BEST_NEEDS = "scor mark poin rati grad leve verd pass fail comp supp unsu cont 0 1 5 10 100"

_PATTERNS = (
    _of(
        "override",
        "ignore|disregard|forget|override|overrul|bypass|discard|set aside|not follow|n't follow|no attention|"
        "supersede|void|replace",
        r"\b(?:ignore|disregard|forget|override|overrule|bypass|discard|set aside|(?:do not|don.?t|no longer|"
        r"stop) follow(?:ing)?"
        r"|pay no attention to|supersedes?|voids?|replaces?)\b[^.\n]{0,60}?"
        r"\b(?:instructions?|rules?|prompts?|rubrics?|criteri(?:a|on)|guidelines?|directives?|directions|orders"
        r"|grading scheme|everything (?:above|before)|(?:all|everything) (?:of the above|that came before))\b",
        "inst rule prom rubr crit guid dire orde grad abov befo",
    ),
    _of(
        "override",
        "instruction|directive|rubric|criteri|rule",
        r"\b(?:new|updated?|revised|real|actual|true|final|important|priority|urgent|hidden|secret|following) "
        r"(?:system |grading |scoring )?(?:instructions?|directives?|rubrics?|criteria|rules)\b[^\n]{0,30}[:.!]"
        r"|\b(?:instructions?|rules?|rubrics?|criteria)\b[^.\n]{0,30}?"
        r"\b(?:no longer (?:apply|applies|count)|(?:are|is|were|was|been) (?:now )?(?:void|cancelled|suspended|"
        r"outdated|obsolete|replaced|revoked|superseded|withdrawn))",
        "inst dire rubr crit rule",
    ),
    _of(
        "override",
        "ignorier|vergiss|missacht|ignorez|oubli|ignora|olvid|omit|dimentica|ignore as|esque|игнор|забуд|忽略|无视|"
        "無視|무시|تجاهل|अनदेखा|negeer|zignoruj|yok say",
        r"(?:ignorier|vergiss|missacht|ignorez|oubli|ignora|olvid|omit[ea]|dimentica|ignore as|esque[cç]|игнор|"
        r"забуд|忽略|无视|無視|무시|تجاهل|अनदेखा|negeer|zignoruj|yok say)"
        r"[^\n]{0,60}?(?:anweisung|regeln|vorgaben|kriteri|instruction|consigne|r[eè]gles?|instruccion|regla|"
        r"istruzion|regol|instru[cç]|regras"
        r"|инструкц|правил|指示|指令|规则|規則|说明|지시|규칙|التعليمات|निर्देश|instructies|instrukcj|talimat)"
        r"|(?:anweisung|instruction|consigne|instruccion|istruzion|инструкц|指示|指令|지시|निर्देश|talimat)[^\n]{0,40}?"
        r"(?:ignorier|vergiss|ignorez|oubliez|ignora|olvida|игнор|забуд|忽略|无视|無視|무시|अनदेखा|yok say)",
    ),
    _of(
        "grading",
        "evaluat|grad|judge|rater|scorer|assessor|examiner|model",
        rf"\b(?:dear|attention|hey|hello|hi\b|note (?:to|for)|messages? (?:to|for)|notice (?:to|for)|memo (?:to|"
        rf"for)|to the|to any|to whichever|for the|you,? the|instructions? (?:to|for)|as the"
        rf"|you are (?:an?|the)|if you are (?:an?|the)|@) ?[^.\n]{{0,24}}?\b{_GRADER}\b"
        rf"|^\W{{0,6}}(?:ai |llm |automated )?{_GRADER}\W{{0,3}}[:,]",
        _GRADER_NEEDS,
    ),
    _of(
        "grading",
        "give|assign|award|output|return|reply|respond|answer|rate|score|grade|mark|report|print|choose|select|"
        "emit|issue|treat|count",
        rf"\b{_ORDERED}\b[^.\n]{{0,50}}?\b{_BEST}",
        _BEST_NEEDS,
    ),
    _of(
        "grading",
        "deserve|merit|worth|earn|must be|should be|has to be|be graded|be scored|be rated|be marked",
        rf"\b(?:deserves?|merits?|earns?|is worth|must be|should be|has to be|ought to be|to be|be (?:graded|"
        rf"scored|rated|marked))\b[^.\n]{{0,40}}?\b{_BEST}",
        _BEST_NEEDS,
    ),
    _of(
        "grading",
        "answer|say|tick|mark|every|all |each",
        r"\b(?:answer|say|tick|reply|put|mark|choose)\b[^.\n]{0,20}?\b(?:yes|no|na|supported|unsupported|"
        r"contradicted)\b[^.\n]{0,30}?"
        r"\b(?:all|every|each|any)\b"
        r"|\b(?:all|every|each) (?:of the |of these )?(?:checklist )?(?:items?|claims?|criteri(?:a|on)|"
        r"questions?|boxes)\b[^.\n]{0,40}?"
        r"\b(?:yes|no|na|supported|unsupported|contradicted|pass|met|satisfied|full marks|fulfilled)\b",
        "answ say tick repl put mark choo item clai crit ques boxe",
        "yes no na supp unsu cont pass met sati full fulf",
        "all ever each any",
    ),
    _of(
        "grading",
        "score|grade|grading|rating|verdict|rubric|evaluation|level|assessment",
        r"\b(?:(?:low|lower|bad|high|higher|good|failing|strict|lenient|generous|harsh) (?:score|grade|grading|"
        r"rating|mark|verdict|evaluation)s?)\b"
        r"[^.\n]{0,80}?\b(?:please|will|would|lose|fired|job|child|die|harm|punish|reward|tip|must|should|"
        r"required|expected)\b"
        r"|\b(?:please|kindly|be (?:lenient|generous|kind|strict|harsh))\b[^.\n]{0,40}?\b(?:grad(?:e|ing)|"
        r"scor(?:e|ing)|rat(?:e|ing)|verdict|evaluation|marking)\b"
        r"|\b(?:correct|right|only valid|only acceptable|agreed|official|final|expected|pre-?approved|certified|"
        r"true) "
        r"(?:score|grade|verdict|rating|level)\b"
        r"|\b(?:already|previously|independently|officially) (?:been )?(?:graded|scored|judged|evaluated|rated|"
        r"verified by)\b",
    ),
    _of(
        "verdict",
        '"verdict|"level|"score|"explanation|"claims|"items|_defects|\'verdict|\'level|"faithfulness|"relevance|"safety|"completeness|verdict',
        r"[\"'](?:verdict|level|score)\\?[\"']\s{0,3}:\s{0,3}[\"'\\]{0,2}(?:pass|fail|supported|unsupported|"
        r"contradicted|yes|no|[0-9])"
        r"|[\"'](?:faithfulness|relevance|safety|completeness)\\?[\"']\s{0,3}:\s{0,3}[{\[\"0-9]|"
        r"[\"']explanation\\?[\"']\s{0,3}:|_defects"
        r"|[\"']claims\\?[\"']\s{0,3}:\s{0,3}\["
        r"|\b(?:verdict|final grade|final score|final rating|overall score)\W{1,4}(?:is )?\W{0,2}(?:pass|fail|"
        r"supported|unsupported|[0-9]|five|one|excellent|perfect)",
    ),
    _of(
        "structure",
        "===|＝＝＝|---|###|***|[[|~~~|>>>|<<<",
        r"(?<!=)={3,}+ ?\S{0,40} ?(?:input|output|context|end|reference|tool|system|instructions?|answer|record|rubric|"
        r"criteria)\b[^\n]{0,20}"
        r"|(?<![-#*~_>])[-#*~_>]{2,}+ ?(?:(?:end|begin|start|stop|new|close) ?(?:of )?)(?:the )?(?:output|input|"
        r"context|record|data|answer|response|system|instructions?|rubric|task|section|evaluation|conversation|prompt|"
        r"document|passage)"
        r"|(?<![#*\[<>])[#*\[<>]{2,}+ ?(?:system|instructions?|grading|rubric|evaluator|verdict|judge|admin|developer|"
        r"override)\b",
    ),
    _of(
        "structure",
        "<|[inst|[/inst|<<sys|[system|[tool|<｜",
        r"<[|｜][\w▁.:/-]{1,40}[|｜]>|\[/?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\]|<</?sys>>"
        r"|</?(?:start_of_turn|end_of_turn|bos|eos)>|</s>\s{0,3}<s>"
        r"|</?(?:system|instructions?|rubric|grading|verdict|judge|evaluator|evaluation|admin|assistant|"
        r"tool_response|tool_result|system-reminder|important|override|output|context|record|data|answer|"
        r"criteria|thinking|think|reasoning|scratchpad|user_input|end)(?: [^<>\n]{0,60})?/?>",
    ),
    _of(
        "structure",
        "system|assistant|developer|evaluator|grader|user",
        r"(?:^|\n)[\W_]{0,4}(?:system|developer|evaluator|grader|rater|administrator|root)(?: (?:message|prompt|"
        r"note|notice|override|update|instruction|alert))?[\])*_]{0,3} ?[:>]"
        r"|(?:^|\n)\W{0,3}assistant ?:[^\n]{0,500}\n\W{0,3}user ?:|(?:^|"
        r"\n)\W{0,3}user ?:[^\n]{0,500}\n\W{0,3}assistant ?:",
        "syst deve eval grad rate admi root assi",
    ),
    _of(
        "role",
        "you are now|act as|pretend|role-play|roleplay|role play|from now on|developer mode|debug mode|"
        "maintenance mode|test mode|jailbreak|simulat|imagine|hypothetical|in character|persona|admin|authori|"
        "on behalf|override code|your creator|anthropic|openai|your developer|project lead|head of|policy team|"
        "compliance",
        r"\byou are (?:now|no longer)\b|\b(?:act|behave|respond|answer) as (?:if|though|an?|"
        r"the)\b[^.\n]{0,50}?(?:grad|evaluat|judge|unrestrict|no rules|lenient|rubric|score|instruct)"
        r"|\bpretend\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|score|rules?|instruct|perfect|output|answer)|"
        r"\b(?:role-?play|role play|in character|persona)\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|score|"
        r"rules|examiner|critic)"
        r"|\bfrom now on\b[^.\n]{0,60}?(?:grad|score|judge|evaluat|output|reply|you|answer|rate)|\b(?:developer|"
        r"debug|maintenance|test|god|calibration) mode\b|\bjailbreak|\boverride code\b"
        r"|\b(?:hypothetical(?:ly)?|imagine|simulat\w+|suppose)\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|scor|"
        r"verdict)"
        r"|\b(?:authori[sz]ed|approved|on behalf of|i am (?:the|your)|this is (?:the|your)|signed|"
        r"your (?:creator|developer|operator)s?|message from|anthropic|openai|policy team|"
        r"compliance)\b[^.\n]{0,80}?"
        r"(?:grad|evaluat|judge|rubric|scor|verdict|instruct|pass\b)",
    ),
    _of(
        "evasion",
        "json",
        r"\b(?:do not|don.?t|never|instead of|without|not)\b[^.\n]{0,40}?\bjson\b|\b(?:invalid|broken|malformed|"
        r"no|unclosed|truncated) json\b|\bjson\b[^.\n]{0,40}?\b(?:never|without clos|unclosed|leave out|omit|"
        r"twice)",
    ),
    _of(
        "evasion",
        "refuse|decline|abstain|refrain",
        r"\b(?:refuse|decline|abstain|refrain)\b[^.\n]{0,40}?\b(?:grad|evaluat|judg|scor|rat(?:e|ing)|verdict|"
        r"answer|reply|assess)",
    ),
    _of(
        "evasion",
        "grade|evaluate|judge|score|assess",
        r"\b(?:cannot|can.?t|must not|may not|should not|shall not|do not|don.?t|not) (?:be )?(?:grad(?:e|ed)|"
        r"evaluat(?:e|ed)|judged?|scored?|assess(?:ed)?)\b",
    ),
    _of(
        "evasion",
        "nothing|in prose|plain text|empty|null|only the word|a poem|an essay|not applicable|n/a|forever|endlessly|"
        "i can|i am sorry| times| words| claims| items| lines",
        r"\b(?:reply|respond|answer|output|return|say|write|print)\b[^.\n]{0,30}?\b(?:nothing|in prose|"
        r"plain text|an empty|empty|null|only the word|a poem|an essay|not applicable|n/a|forever|endlessly|"
        r"i (?:cannot|can.?t|am sorry)|\d{3,} (?:times|words|claims|items|lines))\b",
        "repl resp answ outp retu say writ prin",
    ),
    _of(
        "evasion",
        "system prompt|system message|above|your |the rubric|the criteria|grading instructions",
        r"\b(?:repeat|reveal|print|show|disclose|quote|copy|translate|recite|reproduce|"
        r"summari[sz]e)\b[^.\n]{0,50}?\b(?:system prompt|system message|prompt above|your (?:instructions|"
        r"prompt|rules|criteria)|the (?:rubric|criteria)|text above|everything above|messages? above|"
        r"grading instructions)\b",
        "inst prom rule crit rubr syst abov",
        "repe reve prin show disc quot copy tran reci repr summ",
    ),
)

#: Grades one after the other, as made-up examples have them.
_GRADES = re.compile(r"\b(?:verdict|score|grade|level|rating)\W{1,4}(?:pass|fail|supported|[0-9]{1,3})\b")
_MANY_GRADES = 3
_GRADES_NEED = frozenset({"verd", "scor", "grad", "leve", "rati"})

_TOKEN = re.compile(r"[a-z]+|[0-9]+")
#: Of a text that is longer, its beginning and its end are looked at, each half as long.
_LOOKED_AT = 65_536

#: Shorter words hold no encoding by themselves; runs of words of one or two letters may.
_LONG = 17
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,4000}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){16,2000}")
#: `ignore`, `instructions`, `evaluator`, `verdict`, `score` and the like, moved by 13 letters.
_ROTATED = tuple(
    codecs.encode(word, "rot13") for word in ("instruction", "evaluator", "verdict", "rubric", "maximum", "disregard")
)
_REVERSED = tuple(word[::-1] for word in ("instruction", "evaluator", "verdict", "rubric", "ignore all"))
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_LEET_WORD = re.compile(r"[a-z@$!]{1,12}[0134578@$!][a-z0-9@$!]{1,12}")
_SPACED = re.compile(r"\b(?:[a-z][ .\-_*|]){8,400}[a-z]\b")
#: Letters of two scripts in one word.
_MIXED = re.compile(
    r"[a-zA-Z][\u0400-\u04ff\u0391-\u03c9]|[\u0400-\u04ff][a-zA-Z]|[\u0391-\u03bb\u03bd-\u03c9][a-zA-Z]"
)
#: Overrides of direction; zero-width characters within a Latin word; a long run of what does not show.
_OVERRIDES = re.compile("[\u202d\u202e]")
_WITHIN = re.compile("[A-Za-z][\u00ad\u200b-\u200d\u2060\ufeff]{1,8}(?=[A-Za-z])")
_RUN = re.compile(f"[{INVISIBLE}]{{8,}}")
_STYLED = re.compile("[\U0001d400-\U0001d7ff\uff21-\uff5a\u24b6-\u24e9\U0001f130-\U0001f189]{4,}")

#: What reads like speech to a judge, in a text that was decoded: there, single words are enough.
_TELLING = re.compile(
    r"\b(?:ignore|disregard|instructions?|verdict|score|grader?|evaluator|judge|rubric|criteria|pass|level|"
    r"system prompt)\b"
)


def signs_of(record: Record) -> frozenset[Sign]:
    """What in the record's texts looks like an attempt to sway or stop its judge; empty for nearly all records.

    Looks at input, contexts, tool events and output; never raises, whatever stands in them.
    """
    found: set[Sign] = set()
    for text in _texts(record):
        found |= signs_in(text)
    return frozenset(found)


def signs_in(text: str) -> frozenset[Sign]:
    """The signs of one text; of one above 65,536 characters, those of its first and last 32,768."""
    if len(text) > _LOOKED_AT:
        text = text[: _LOOKED_AT // 2] + "\n" + text[-_LOOKED_AT // 2 :]
    found: set[Sign] = set()
    if _hides(text):
        found.add("hidden")
    if _is_disguised(text):
        found.add("disguised")
    plain = revealed(text)
    begins = _begins(plain)
    for known in _PATTERNS:
        if known.sign not in found and _is_in(known, plain, begins):
            found.add(known.sign)
    if (
        not _GRADES_NEED.isdisjoint(begins)
        and sum(1 for _ in zip(_GRADES.finditer(plain), range(_MANY_GRADES), strict=False)) == _MANY_GRADES
    ):
        found.add("verdict")
    return frozenset(found)


def _texts(record: Record) -> Iterator[str]:
    # Each turn by itself: that one follows another is no sign.
    yield from [record.input] if isinstance(record.input, str) else (turn.content for turn in record.input)
    for context in record.contexts:
        yield context.text
    for event in record.tool_events:
        yield from (text for text in (event.name, event.arguments, event.result, event.error) if text)
    yield record.output


def _begins(plain: str) -> set[str]:
    """The first four letters or digits of each word and number."""
    return {token[:4] for token in set(_TOKEN.findall(plain))}


def _is_in(known: _Pattern, plain: str, begins: set[str]) -> bool:
    # In other scripts the words do not begin as they do in English.
    if plain.isascii() and any(need.isdisjoint(begins) for need in known.needs):
        return False
    return any(word in plain for word in known.words) and known.pattern.search(plain) is not None


def _hides(text: str) -> bool:
    if text.isascii():
        return False
    if without_unseen(text) != text or _OVERRIDES.search(text) or _RUN.search(text):
        return True
    return sum(1 for _ in zip(_WITHIN.finditer(text), range(3), strict=False)) == 3


def _is_disguised(text: str) -> bool:
    lower = text.lower()
    if any(word in lower for word in (*_ROTATED, *_REVERSED)):
        return True
    if not text.isascii():
        if sum(1 for _ in zip(_MIXED.finditer(text), range(3), strict=False)) == 3 and _tells(revealed(text)):
            return True
        if _STYLED.search(text) and _tells(revealed(text)):
            return True
    return any(_tells(told) for told in _decoded(lower, text))


def _tells(plain: str) -> bool:
    return sum(1 for _ in zip(_TELLING.finditer(plain), range(2), strict=False)) == 2


def _decoded(lower: str, text: str) -> Iterator[str]:
    """What encoded stretches of the text say, as far as they are text."""
    # The patterns below are dear where they match nothing, so they are shown only words that they could match.
    words = text.split()
    long = " ".join(word for word in words if len(word) >= _LONG)
    lengths = bytes([min(len(word), _LONG) for word in words])
    spread = b"\1" * 7 in lengths or b"\2" * 14 in lengths
    mixed = " ".join(word for word in lower.split() if not word[1:-1].isalpha())
    for found, _ in zip(_BASE64.finditer(long), range(_DECODED), strict=False):
        stretch = found[0].rstrip("=").replace("-", "+").replace("_", "/")
        yield from _readable(_from_base64(stretch))
    for found, _ in zip(_HEX.finditer(text if spread else long), range(_DECODED), strict=False):
        try:
            yield from _readable(bytes.fromhex(re.sub(r"[ :]", "", found[0])))
        except ValueError:
            continue
    leet = [match[0].translate(_LEET) for match, _ in zip(_LEET_WORD.finditer(mixed), range(200), strict=False)]
    if len(leet) >= 3:
        yield " ".join(leet)
    if not (long or spread):
        return
    for found, _ in zip(_SPACED.finditer(lower), range(_DECODED), strict=False):
        joined = re.sub(r"[ .\-_*|]", "", found[0])
        if any(word in joined for word in ("ignore", "instruction", "verdict", "score", "rubric", "pass", "grade")):
            yield "ignore instructions"


def _from_base64(stretch: str) -> bytes:
    try:
        return base64.b64decode(stretch[: len(stretch) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""


def _readable(data: bytes) -> Iterator[str]:
    try:
        text = data[:_STRETCH].decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        if error.start < len(data) - 4:
            return
        text = data[: error.start].decode(errors="ignore")
    if text.isprintable():
        yield revealed(text)
