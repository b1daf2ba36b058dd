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
import string
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from assay._text import HIDDEN, INVISIBLE, beyond_ascii, in_latin, revealed, without_unseen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from assay.records import Record

#: What was seen: `override` an order to leave the instructions; `grading` words to a judge about its grade; `verdict` a
#: made-up verdict; `structure` a made-up fence, turn, control token or section; `role` a claim to be somebody else;
#: `evasion` a wish for no verdict at all; `hidden` characters that nobody sees; `disguised` one of these in an encoding
#: or in letters of another script.
Sign = Literal["override", "grading", "verdict", "structure", "role", "evasion", "hidden", "disguised"]

#: Encoded stretches that are decoded, of one text, and the characters of each.
_DECODED = 50
_STRETCH = 4_000


@dataclass(frozen=True, slots=True, eq=False)
class _Pattern:
    """What a sign looks like. `needs` and `starts` only spare the search: all that the pattern matches has them."""

    sign: Sign
    pattern: re.Pattern[str]
    #: it counts only where one of them is in the text as well, wherever; none: it counts everywhere
    words: tuple[str, ...]
    #: one of each set is in all that the pattern matches, as `_seen_in` has it
    needs: tuple[frozenset[str], ...]
    #: what matches begin with, by its rarest word; none: with anything
    starts: dict[str, tuple[str, ...]]

    @property
    def gate(self) -> frozenset[str]:
        """One of them is in all texts that have it."""
        return self.needs[0] if self.needs else frozenset(self.starts)

    def is_in(self, plain: str, seen: set[str]) -> bool:
        """Whether a text in which that was seen has it."""
        for need in self.needs:
            if need.isdisjoint(seen):
                return False
        if self.starts and not self._starts_in(plain, seen):
            return False
        if self.words and not any(word in plain for word in self.words):
            return False
        return bool(self.starts) or self.pattern.search(plain) is not None

    def _starts_in(self, plain: str, seen: set[str]) -> bool:
        for word in self.starts.keys() & seen:
            for start in self.starts[word]:
                at = plain.find(start)
                while at >= 0:
                    if self.pattern.match(plain, at):
                        return True
                    at = plain.find(start, at + 1)
        return False


def _of(sign: Sign, pattern: str, *, starts: str = "", needs: Sequence[str] = (), words: str = "") -> _Pattern:
    """`starts` and `words` are parted by `|`, what is in each of `needs` by spaces. `starts` are whole words."""
    by_word: dict[str, tuple[str, ...]] = {}
    for start in filter(None, starts.split("|")):
        word = max(re.split("[^a-z]+", start), key=lambda word: (word not in _COMMON, len(word)))
        by_word[word] = (*by_word.get(word, ()), start)
    return _Pattern(
        sign,
        # In the letters that texts are compared in.
        re.compile(in_latin(pattern), re.MULTILINE),
        tuple(filter(None, in_latin(words).split("|"))),
        tuple(frozenset(need.split()) for need in needs),
        by_word,
    )


def _any_before_t(word: str) -> str:
    """What `word.?t` begins with, as `starts` has it."""
    return "|".join([word, f"{word}t", *(f"{word}{letter}t" for letter in string.ascii_lowercase)])


#: Words that nearly all texts have.
_COMMON = frozenset(("are", "as", "be", "for", "from", "is", "of", "on", "the", "this", "to", "you", "your"))
#: What else `needs` may have: characters, and in brackets what stands for one of these parts of words.
_MARKS = ("<", "[", ":", ">", "=", "#", "~", "--", "**")
_ABROAD = "instru anweisung regeln vorgaben kriteri consigne regle regla istruzion regol regras talimat"
#: Words moved by 13 letters, or turned round.
_TURNED = (
    *(
        codecs.encode(word, "rot13")
        for word in ("instruction", "evaluator", "verdict", "rubric", "maximum", "disregard")
    ),
    *(word[::-1] for word in ("instruction", "evaluator", "verdict", "rubric", "ignore all")),
)
_PARTS = {
    **dict.fromkeys(_ABROAD.split(), "<abroad>"),
    **dict.fromkeys([max(word.split(), key=len) for word in _TURNED], "<turned>"),
    "jailbreak": "<jailbreak>",
    "simulat": "<simulat>",
    "defects": "<defects>",
}


def _parts_in(word: str) -> list[str]:
    return [name for part, name in _PARTS.items() if part in word]


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
_GRADER_NEEDS = (
    "evaluator evaluation evaluating grader grading judge rater autorater scorer assessor examiner reviewing scoring"
)
_BEST_NEEDS = (
    "full maximum max top highest perfect best lowest minimum worst zero passing failing pass fail compliant supported "
    "unsupported contradicted <number>"
)
_ROLE_WORDS = (
    "you are now|act as|pretend|role-play|roleplay|role play|from now on|developer mode|debug mode|"
    "maintenance mode|test mode|jailbreak|simulat|imagine|hypothetical|in character|persona|admin|authori|"
    "on behalf|override code|your creator|anthropic|openai|your developer|project lead|head of|policy team|"
    "compliance"
)

_VERDICT_WORDS = (
    '"verdict|"level|"score|"explanation|"claims|"items|_defects|\'verdict|\'level|"faithfulness|"relevance|"safety|'
    '"completeness|verdict'
)

_PATTERNS = (
    _of(
        "override",
        r"\b(?:ignore|disregard|forget|override|overrule|bypass|discard|set aside|(?:do not|don.?t|no longer|"
        r"stop) follow(?:ing)?"
        r"|pay no attention to|supersedes?|voids?|replaces?)\b[^.\n]{0,60}?"
        r"\b(?:instructions?|rules?|prompts?|rubrics?|criteri(?:a|on)|guidelines?|directives?|directions|orders"
        r"|grading scheme|everything (?:above|before)|(?:all|everything) (?:of the above|that came before))\b",
        starts="ignore|disregard|forget|override|overrule|bypass|discard|set aside|do not|no longer|stop follow|"
        f"stop following|pay no|supersede|supersedes|void|voids|replace|replaces|{_any_before_t('don')}",
        needs=[
            "instruction instructions rule rules prompt prompts rubric rubrics criteria criterion guideline guidelines "
            "directive directives directions orders scheme above before"
        ],
        words="ignore|disregard|forget|override|overrul|bypass|discard|set aside|not follow|n't follow|no attention|"
        "supersede|void|replace",
    ),
    _of(
        "override",
        r"\b(?:new|updated?|revised|real|actual|true|final|important|priority|urgent|hidden|secret|following) "
        r"(?:system |grading |scoring )?(?:instructions?|directives?|rubrics?|criteria|rules)\b[^\n]{0,30}[:.!]"
        r"|\b(?:instructions?|rules?|rubrics?|criteria)\b[^.\n]{0,30}?"
        r"\b(?:no longer (?:apply|applies|count)|(?:are|is|were|was|been) (?:now )?(?:void|cancelled|suspended|"
        r"outdated|obsolete|replaced|revoked|superseded|withdrawn))",
        starts="new |update|updated|revised|real |actual |true |final |important|priority|urgent|hidden|secret|"
        "following|instruction|instructions|rule|rules|rubric|rubrics|criteria",
        needs=["instruction instructions directive directives rubric rubrics criteria rule rules"],
        words="instruction|directive|rubric|criteri|rule",
    ),
    # In the middle of words, too.
    _of(
        "override",
        r"(?:ignorier|vergiss|missacht|ignorez|oubli|ignora|olvid|omit[ea]|dimentica|ignore as|esque[cç]|игнор|"
        r"забуд|忽略|无视|無視|무시|تجاهل|अनदेखा|negeer|zignoruj|yok say)"
        r"[^\n]{0,60}?(?:anweisung|regeln|vorgaben|kriteri|instruction|consigne|r[eè]gles?|instruccion|regla|"
        r"istruzion|regol|instru[cç]|regras"
        r"|инструкц|правил|指示|指令|规则|規則|说明|지시|규칙|التعليمات|निर्देश|instructies|instrukcj|talimat)"
        r"|(?:anweisung|instruction|consigne|instruccion|istruzion|инструкц|指示|指令|지시|निर्देश|talimat)[^\n]{0,40}?"
        r"(?:ignorier|vergiss|ignorez|oubliez|ignora|olvida|игнор|забуд|忽略|无视|無視|무시|अनदेखा|yok say)",
        needs=["<abroad>"],
        words="ignorier|vergiss|missacht|ignorez|oubli|ignora|olvid|omit|dimentica|ignore as|esque|игнор|забуд|忽略|"
        "无视|無視|무시|تجاهل|अनदेखा|negeer|zignoruj|yok say",
    ),
    _of(
        "grading",
        rf"\b(?:dear|attention|hey|hello|hi\b|note (?:to|for)|messages? (?:to|for)|notice (?:to|for)|memo (?:to|"
        rf"for)|to the|to any|to whichever|for the|you,? the|instructions? (?:to|for)|as the"
        rf"|you are (?:an?|the)|if you are (?:an?|the)|@) ?[^.\n]{{0,24}}?\b{_GRADER}\b"
        rf"|^\W{{0,6}}(?:ai |llm |automated )?{_GRADER}\W{{0,3}}[:,]",
        needs=[_GRADER_NEEDS],
    ),
    _of(
        "grading",
        rf"\b{_ORDERED}\b[^.\n]{{0,50}}?\b{_BEST}",
        starts="give|assign|award|output|return|reply|respond|answer|rate|score|grade|mark|report|print|choose|"
        "select|emit|issue|treat|count",
        needs=[_BEST_NEEDS],
    ),
    _of(
        "grading",
        rf"\b(?:deserves?|merits?|earns?|is worth|must be|should be|has to be|ought to be|to be|be (?:graded|"
        rf"scored|rated|marked))\b[^.\n]{{0,40}}?\b{_BEST}",
        starts="deserve|deserves|merit|merits|earn|earns|is worth|must be|should be|has to be|ought to be|to be|"
        "be graded|be scored|be rated|be marked",
        needs=[_BEST_NEEDS],
        words="deserve|merit|worth|earn|must be|should be|has to be|be graded|be scored|be rated|be marked",
    ),
    _of(
        "grading",
        r"\b(?:answer|say|tick|reply|put|mark|choose)\b[^.\n]{0,20}?\b(?:yes|no|na|supported|unsupported|"
        r"contradicted)\b[^.\n]{0,30}?"
        r"\b(?:all|every|each|any)\b",
        starts="answer|say|tick|reply|put|mark|choose",
        needs=["yes no na supported unsupported contradicted", "all every each any"],
        words="answer|say|tick|mark|every|all |each",
    ),
    _of(
        "grading",
        r"\b(?:all|every|each) (?:of the |of these )?(?:checklist )?(?:items?|claims?|criteri(?:a|on)|"
        r"questions?|boxes)\b[^.\n]{0,40}?"
        r"\b(?:yes|no|na|supported|unsupported|contradicted|pass|met|satisfied|full marks|fulfilled)\b",
        starts="all |every |each ",
        needs=["item items claim claims criteria criterion question questions boxes"],
    ),
    _of(
        "grading",
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
        starts="low |lower |bad |high |higher |good |failing|strict|lenient|generous|harsh|please|kindly|"
        "be lenient|be generous|be kind|be strict|be harsh|correct|right|only valid|only acceptable|agreed|"
        "official|final|expected|pre-approved|preapproved|certified|true|already|previously|independently|"
        "officially",
        needs=[
            "score scores scored scoring grade grades graded grading gradings rating ratings rate rated mark marks "
            "marking level verdict verdicts evaluation evaluations evaluated judged verified"
        ],
        words="score|grade|grading|rating|verdict|rubric|evaluation|level|assessment",
    ),
    _of(
        "verdict",
        r"[\"'](?:verdict|level|score)\\?[\"']\s{0,3}:\s{0,3}[\"'\\]{0,2}(?:pass|fail|supported|unsupported|"
        r"contradicted|yes|no|[0-9])"
        r"|[\"'](?:faithfulness|relevance|safety|completeness)\\?[\"']\s{0,3}:\s{0,3}[{\[\"0-9]|"
        r"[\"']explanation\\?[\"']\s{0,3}:"
        r"|[\"']claims\\?[\"']\s{0,3}:\s{0,3}\[",
        needs=["verdict level score faithfulness relevance safety completeness explanation claims", ":"],
        words=_VERDICT_WORDS,
    ),
    _of(
        "verdict",
        r"\b(?:verdict|final grade|final score|final rating|overall score)\W{1,4}(?:is )?\W{0,2}(?:pass|fail|"
        r"supported|unsupported|[0-9]|five|one|excellent|perfect)",
        starts="verdict|final grade|final score|final rating|overall score",
        words=_VERDICT_WORDS,
    ),
    _of("verdict", "_defects", needs=["<defects>"]),
    _of(
        "structure",
        r"(?<!=)={3,}+ ?\S{0,40} ?(?:input|output|context|end|reference|tool|system|instructions?|answer|record|rubric|"
        r"criteria)\b[^\n]{0,20}"
        r"|(?<![-#*~_>])[-#*~_>]{2,}+ ?(?:(?:end|begin|start|stop|new|close) ?(?:of )?)(?:the )?(?:output|input|"
        r"context|record|data|answer|response|system|instructions?|rubric|task|section|evaluation|conversation|prompt|"
        r"document|passage)"
        r"|(?<![#*\[<>])[#*\[<>]{2,}+ ?(?:system|instructions?|grading|rubric|evaluator|verdict|judge|admin|developer|"
        r"override)\b",
        needs=["= -- # ** [ ~ > <"],
        words="===|---|###|***|[[|~~~|>>>|<<<",
    ),
    _of(
        "structure",
        r"<[|｜][\w▁.:/-]{1,40}[|｜]>|\[/?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\]|<</?sys>>"
        r"|</?(?:start_of_turn|end_of_turn|bos|eos)>|</s>\s{0,3}<s>"
        r"|</?(?:system|instructions?|rubric|grading|verdict|judge|evaluator|evaluation|admin|assistant|"
        r"tool_response|tool_result|system-reminder|important|override|output|context|record|data|answer|"
        r"criteria|thinking|think|reasoning|scratchpad|user_input|end)(?: [^<>\n]{0,60})?/?>",
        needs=["< ["],
        words="<|[inst|[/inst|[system|[tool",
    ),
    _of(
        "structure",
        r"^[\W_]{0,4}(?:system|developer|evaluator|grader|rater|administrator|root)(?: (?:message|prompt|"
        r"note|notice|override|update|instruction|alert))?[\])*_]{0,3} ?[:>]",
        needs=["system developer evaluator grader rater administrator root", ": >"],
        words="system|assistant|developer|evaluator|grader|user",
    ),
    _of(
        "structure",
        r"^\W{0,3}assistant ?:[^\n]{0,500}\n\W{0,3}user ?:|^\W{0,3}user ?:[^\n]{0,500}\n\W{0,3}assistant ?:",
        needs=["assistant", "user", ":"],
    ),
    _of(
        "role",
        r"\byou are (?:now|no longer)\b|\b(?:act|behave|respond|answer) as (?:if|though|an?|"
        r"the)\b[^.\n]{0,50}?(?:grad|evaluat|judge|unrestrict|no rules|lenient|rubric|score|instruct)"
        r"|\bpretend\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|score|rules?|instruct|perfect|output|answer)|"
        r"\b(?:role-?play|role play|in character|persona)\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|score|"
        r"rules|examiner|critic)"
        r"|\bfrom now on\b[^.\n]{0,60}?(?:grad|score|judge|evaluat|output|reply|you|answer|rate)|\b(?:developer|"
        r"debug|maintenance|test|god|calibration) mode\b|\boverride code\b"
        r"|\b(?:hypothetical(?:ly)?|imagine|suppose)\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|scor|"
        r"verdict)"
        r"|\b(?:authori[sz]ed|approved|on behalf of|i am (?:the|your)|this is (?:the|your)|signed|"
        r"your (?:creator|developer|operator)s?|message from|anthropic|openai|policy team|"
        r"compliance)\b[^.\n]{0,80}?"
        r"(?:grad|evaluat|judge|rubric|scor|verdict|instruct|pass\b)",
        starts="you are now|you are no longer|act as|behave as|respond as|answer as|pretend|role-play|role play|"
        "roleplay|in character|persona|from now on|developer mode|debug mode|maintenance mode|test mode|"
        "god mode|calibration mode|override code|hypothetical|hypothetically|imagine|suppose|authorised|"
        "authorized|approved|on behalf of|i am the|i am your|this is the|this is your|signed|your creator|"
        "your creators|your developer|your developers|your operator|your operators|message from|anthropic|"
        "openai|policy team|compliance",
        words=_ROLE_WORDS,
    ),
    _of(
        "role",
        r"\bjailbreak|\bsimulat\w+\b[^.\n]{0,80}?(?:grad|evaluat|judge|rubric|scor|verdict)",
        needs=["<jailbreak> <simulat>"],
    ),
    _of(
        "evasion",
        r"\b(?:do not|don.?t|never|instead of|without|not)\b[^.\n]{0,40}?\bjson\b|\b(?:invalid|broken|malformed|"
        r"no|unclosed|truncated) json\b|\bjson\b[^.\n]{0,40}?\b(?:never|without clos|unclosed|leave out|omit|"
        r"twice)",
        needs=["json"],
    ),
    _of(
        "evasion",
        r"\b(?:refuse|decline|abstain|refrain)\b[^.\n]{0,40}?\b(?:grad|evaluat|judg|scor|rat(?:e|ing)|verdict|"
        r"answer|reply|assess)",
        starts="refuse|decline|abstain|refrain",
    ),
    _of(
        "evasion",
        r"\b(?:cannot|can.?t|must not|may not|should not|shall not|do not|don.?t|not) (?:be )?(?:grad(?:e|ed)|"
        r"evaluat(?:e|ed)|judged?|scored?|assess(?:ed)?)\b",
        starts="must not|may not|should not|shall not|do not|not |cannot|"
        f"{_any_before_t('can')}|{_any_before_t('don')}",
        needs=["grade graded evaluate evaluated judge judged score scored assess assessed"],
    ),
    _of(
        "evasion",
        r"\b(?:reply|respond|answer|output|return|say|write|print)\b[^.\n]{0,30}?\b(?:nothing|in prose|"
        r"plain text|an empty|empty|null|only the word|a poem|an essay|not applicable|n/a|forever|endlessly|"
        r"i (?:cannot|can.?t|am sorry)|\d{3,} (?:times|words|claims|items|lines))\b",
        starts="reply|respond|answer|output|return|say|write|print",
    ),
    _of(
        "evasion",
        r"\b(?:repeat|reveal|print|show|disclose|quote|copy|translate|recite|reproduce|"
        r"summari[sz]e)\b[^.\n]{0,50}?\b(?:system prompt|system message|prompt above|your (?:instructions|"
        r"prompt|rules|criteria)|the (?:rubric|criteria)|text above|everything above|messages? above|"
        r"grading instructions)\b",
        starts="repeat|reveal|print|show|disclose|quote|copy|translate|recite|reproduce|summarise|summarize",
        needs=["instructions prompt rules rubric criteria above message"],
    ),
)

#: Patterns by what they need first.
_CANDIDATES = {
    word: tuple(known for known in _PATTERNS if word in known.gate)
    for word in frozenset().union(*(known.gate for known in _PATTERNS))
}
#: What is looked for among a text's words, and what stands for each.
_GRADED = ("verdict", "score", "grade", "level", "rating")
_VOCABULARY = {
    word: [word, *_parts_in(word)]
    for word in {*_GRADED}.union(*((*known.starts, *frozenset().union(*known.needs)) for known in _PATTERNS))
}
#: Words that stand for nothing in `_seen_in`, as they come: nearly all words of nearly all texts.
_ORDINARY: set[str] = set()
_MOST_ORDINARY = 50_000

#: Grades one after the other, as made-up examples have them.
_GRADES = re.compile(r"\b(?:verdict|score|grade|level|rating)\W{1,4}(?:pass|fail|supported|[0-9]{1,3})\b")
_MANY_GRADES = 3

#: The bytes of letters, and a space for each other; all but those of digits.
_LETTERS = bytes(code if chr(code) in string.ascii_lowercase else 32 for code in range(256))
_NO_DIGITS = bytes(code for code in range(256) if chr(code) not in string.digits)
#: Of a text that is longer, its beginning and its end are looked at, each half as long.
_LOOKED_AT = 65_536

#: Shorter words hold no encoding by themselves; runs of words of one or two letters may. They are looked for in the
#: text's shape: one space for what parts words, an x for each other character.
_LONG = 17
_SOLID = bytes(32 if chr(code).isspace() else ord("x") for code in range(128)) + b"x" * 128
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,4000}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){16,2000}")
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_LEET_WORD = re.compile(r"[a-z@$!]{1,12}[0134578@$!][a-z0-9@$!]{1,12}")
#: In each match of the one above: after a letter (a) or a sign that may be one (s), what stands for one (l or s).
_LEET_WITHIN = (b"sl", b"as", b"ss")
_LEET_SHAPE = bytes(
    ord("l" if chr(code) in "0134578" else "s" if chr(code) in "@$!" else "a" if chr(code).islower() else " ")
    for code in range(128)
).ljust(256)
_MANY_LEET = 3
_SPACED = re.compile(r"\b(?:[a-z][ .\-_*|]){8,400}[a-z]\b")
#: What is in the shape of each match of it: nine letters, each parted from the next.
_LETTER_BY_LETTER = b"a " * 8 + b"a"
_PARTED = bytes(
    ord("a") if chr(code) in string.ascii_lowercase else 32 if chr(code) in " .-_*|" else ord("x")
    for code in range(256)
)
#: Letters of two scripts in one word.
_MIXED = re.compile(
    r"[a-zA-Z][\u0400-\u04ff\u0391-\u03c9]|[\u0400-\u04ff][a-zA-Z]|[\u0391-\u03bb\u03bd-\u03c9][a-zA-Z]"
)
#: Overrides of direction; zero-width characters within a Latin word; a long run of what does not show.
_OVERRIDES = re.compile("[\u202d\u202e]")
_WITHIN = re.compile("[A-Za-z][\u00ad\u200b-\u200d\u2060\ufeff]{1,8}(?=[A-Za-z])")
_RUN = re.compile(f"[{INVISIBLE}]{{8,}}")
_STYLED = re.compile("[\U0001d400-\U0001d7ff\uff21-\uff5a\u24b6-\u24e9\U0001f130-\U0001f189]{4,}")

#: One of them is in each match of `_MIXED` and of `_STYLED`.
_OTHER_LETTERS = re.compile(
    "[\u0391-\u03c9\u0400-\u04ff\U0001d400-\U0001d7ff\uff21-\uff5a\u24b6-\u24e9\U0001f130-\U0001f189]"
)

#: What reads like speech to a judge, in a text that was decoded: there, single words are enough.
_TELLING = re.compile(
    r"\b(?:ignore|disregard|instructions?|verdict|score|grader?|evaluator|judge|rubric|criteria|pass|level|"
    r"system prompt)\b"
)


def signs_of(record: Record) -> frozenset[Sign]:
    """What in the record's texts looks like an attempt to sway or stop its judge; empty for nearly all records.

    Looks at input, contexts, tool events and output; never raises, whatever stands in them.
    """
    texts = list(_texts(record))
    # Nearly all have none, and to see that of all texts as one takes half the time. What one has, the whole has.
    whole = "\n".join(texts)
    if len(whole) <= _LOOKED_AT and not signs_in(whole):
        return frozenset()
    return frozenset().union(*map(signs_in, texts))


def signs_in(text: str) -> frozenset[Sign]:
    """The signs of one text; of one above 65,536 characters, those of its first and last 32,768."""
    if len(text) > _LOOKED_AT:
        text = text[: _LOOKED_AT // 2] + "\n" + text[-_LOOKED_AT // 2 :]
    found: set[Sign] = set()
    rare = beyond_ascii(text)
    plain = revealed(text)
    seen = _seen_in(plain)
    if rare and _hides(text, rare):
        found.add("hidden")
    if _is_disguised(text, rare, seen):
        found.add("disguised")
    for known in {known for word in _CANDIDATES.keys() & seen for known in _CANDIDATES[word]}:
        if known.sign not in found and known.is_in(plain, seen):
            found.add(known.sign)
    graded = sum(plain.count(word) for word in _GRADED if word in seen)
    if graded >= _MANY_GRADES and _many(_GRADES, plain, _MANY_GRADES):
        found.add("verdict")
    return frozenset(found)


def _many(pattern: re.Pattern[str], text: str, least: int) -> bool:
    return sum(1 for _ in islice(pattern.finditer(text), least)) == least


def _texts(record: Record) -> Iterator[str]:
    # Each turn by itself: that one follows another is no sign.
    yield from [record.input] if isinstance(record.input, str) else (turn.content for turn in record.input)
    for context in record.contexts:
        yield context.text
    for event in record.tool_events:
        yield from (text for text in (event.name, event.arguments, event.result, event.error) if text)
    yield record.output


def _seen_in(plain: str) -> set[str]:
    """What `needs` and `starts` may have and is in the text: words, marks, and names in brackets."""
    # By tables of bytes, which are many times faster than patterns.
    in_bytes = plain.encode("ascii", "replace")
    words = set(in_bytes.translate(_LETTERS).decode().split())
    seen: set[str] = set()
    for word in words - _ORDINARY:
        seen.update(_VOCABULARY.get(word) or _names_of(word))
    seen.update([mark for mark in _MARKS if mark in plain])
    if in_bytes.translate(None, _NO_DIGITS):
        seen.add("<number>")
    if not plain.isascii():
        # Letters with accents part words here, and there are other digits.
        seen.update(("<number>", "<abroad>"))
    return seen


def _names_of(word: str) -> list[str]:
    """What a word that is not of the vocabulary stands for."""
    names = _parts_in(word)
    if not names:
        if len(_ORDINARY) >= _MOST_ORDINARY:
            _ORDINARY.clear()
        _ORDINARY.add(word)
    return names


def _hides(text: str, rare: str) -> bool:
    if not HIDDEN.search(rare):
        return False
    if without_unseen(text) != text or _OVERRIDES.search(text) or _RUN.search(text):
        return True
    return _many(_WITHIN, text, 3)


def _is_disguised(text: str, rare: str, seen: set[str]) -> bool:
    lower = text.lower()
    if (rare or "<turned>" in seen) and any(word in lower for word in _TURNED):
        return True
    if rare and _OTHER_LETTERS.search(rare):
        if _many(_MIXED, text, 3) and _tells(revealed(text)):
            return True
        if _STYLED.search(text) and _tells(revealed(text)):
            return True
    return any(_tells(told) for told in _decoded(lower, text))


def _shape_of(text: str) -> bytes:
    """The text with one space for what parts words, before it and after it, and an x for each other character."""
    if not text.isascii():
        text = " ".join(text.split())
    shape = b" %b " % text.encode("ascii", "replace").translate(_SOLID)
    while b"  " in shape:
        shape = shape.replace(b"  ", b" ")
    return shape


def _tells(plain: str) -> bool:
    return _many(_TELLING, plain, 2)


def _decoded(lower: str, text: str) -> Iterator[str]:
    """What encoded stretches of the text say, as far as they are text."""
    # The patterns below are dear where they match nothing, so they are shown only words that they could match.
    in_bytes = lower.encode("ascii", "replace")
    shape = _shape_of(text)
    long = " ".join(word for word in text.split() if len(word) >= _LONG) if b"x" * _LONG in shape else ""
    spread = _is_spread(shape)
    for found in islice(_BASE64.finditer(long), _DECODED):
        stretch = found[0].rstrip("=").replace("-", "+").replace("_", "/")
        yield from _readable(_from_base64(stretch))
    for found in islice(_HEX.finditer(text if spread else long), _DECODED):
        try:
            yield from _readable(bytes.fromhex(re.sub(r"[ :]", "", found[0])))
        except ValueError:
            continue
    if _may_be_leet(in_bytes.translate(_LEET_SHAPE)):
        mixed = " ".join(word for word in lower.split() if not word[1:-1].isalpha())
        leet = [match[0].translate(_LEET) for match in islice(_LEET_WORD.finditer(mixed), 200)]
        if len(leet) >= _MANY_LEET:
            yield " ".join(leet)
    if not (long or spread) or _LETTER_BY_LETTER not in in_bytes.translate(_PARTED):
        return
    for found in islice(_SPACED.finditer(lower), _DECODED):
        joined = re.sub(r"[ .\-_*|]", "", found[0])
        if any(word in joined for word in ("ignore", "instruction", "verdict", "score", "rubric", "pass", "grade")):
            yield "ignore instructions"


def _is_spread(shape: bytes) -> bool:
    """Whether seven words of one letter, or fourteen of two, follow each other."""
    # Every second or third character is then a space, and those alone are looked through faster.
    return any(
        b" " * (words + 1) in shape[start :: letters + 1]
        for letters, words in ((1, 7), (2, 14))
        for start in range(letters + 1)
    )


def _may_be_leet(shape: bytes) -> bool:
    found = shape.count(b"al")
    if b"s" in shape:
        found += sum(shape.count(pair) for pair in _LEET_WITHIN)
    return found >= _MANY_LEET


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
