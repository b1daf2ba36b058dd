"""The calibration report: one safe, self-contained page that says what the numbers say, and why where there is none."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from assay.calibrate import Calibrated, calibrate
from assay.calibration.losses import calibration_curve
from assay.calibration.ranks import roc_auc_score
from assay.calibration_figures import (
    LENGTH_BINS,
    MOST_COHORTS,
    MOST_GROUPS,
    MOST_POINTS,
    Labels,
    figures,
    roc_curve,
)
from assay.calibration_report import MOST_DISAGREEMENTS, MOST_TEXT, render_html
from assay.labels import AnnotatorKind, Labelled, LabelSet, Selection
from assay.records import Context, Failure, NotApplicable, Outcome, Record, Score, Usage
from assay.rubrics import Rubric
from assay.scales import Binary

THRESHOLD = 0.7
RUBRIC = Rubric(
    name="kindness",
    version="2",
    instructions="Is it kind?",
    scale=Binary(pass_when="kind", fail_when="unkind"),
    pass_threshold=THRESHOLD,
)
HASH = "5f" * 32
MADE = datetime(2026, 11, 20, 10, tzinfo=UTC)

HOSTILE = (
    "<script>alert(1)</script></style></title></svg><svg onload=alert(2)><img src=http://x.example/ onerror=alert(3)>"
    "\" ' onmouseover='alert(4)' <!-- ]]> &lt;b&gt; \u202eevil\u202c \u2066 \u200b \x00 \x1b[2J \U000e0041 مرحبا"
)


def labelled(index: int, *grades: float, text: str = "An answer.", **fields: object) -> Labelled:
    """A synthetic record with a label by each annotator, 1 pass or 0 fail."""
    names = ("anna", "ben", "chen")
    record = Record(
        record_id=f"r{index:05d}",
        timestamp=MADE,
        input=f"Question {index}?",
        output=text,
        contexts=(Context(text="A passage."),),
        route=("chat", "search")[index % 2],
        cohort={"region": ("eu", "us", "apac")[index % 3]},
    )
    given = dict(zip(names, grades, strict=False))
    made = {
        "item_id": record.record_id,
        "line": index + 2,
        "record": record,
        "labels": {name: (grade,) for name, grade in given.items()},
        "passes": given,
        "labelled_at": datetime(2026, 11, 3, tzinfo=UTC) + timedelta(hours=index % 48),
    }
    return Labelled(**(made | fields))  # type: ignore[arg-type]


def calibrated(
    items: Sequence[Labelled],
    outcomes: Sequence[Outcome | None],
    *,
    kind: AnnotatorKind = "human",
    synthetic: bool = False,
    selection: Selection = "probability",
    path: str = "kindness.jsonl",
    judge: str = "openai:gpt-5-mini",
    description: str = "",
    levels: tuple[float, ...] | None = None,
) -> Calibrated:
    labels = LabelSet(
        path=Path(path),
        rubric="kindness",
        pass_threshold=THRESHOLD,
        levels=levels,
        items=tuple(items),
        selection=selection,
        annotator_kind=kind,
        synthetic=synthetic,
        gold="majority",
        description=description,
    )
    by_id = {item.item_id: outcome for item, outcome in zip(items, outcomes, strict=True) if outcome is not None}
    return calibrate(labels, RUBRIC, judge=judge, judge_fingerprint=HASH, outcomes=by_id, created_at=MADE)


def score(value: float, explanation: str = "It is kind.", **fields: object) -> Score:
    usage = Usage(prompt_tokens=800, completion_tokens=90, cost_usd=0.0004)
    return Score(
        value=value, passed=value >= THRESHOLD, explanation=explanation, usage=usage, latency_seconds=1.5, **fields
    )  # type: ignore[arg-type]


def sample(
    n: int = 200, *, seed: int = 3, annotators: int = 3, weighted: bool = False, **options: object
) -> Calibrated:
    """A judge that is right more often than not, with scores in steps of 0.05."""
    rng = random.Random(seed)
    items, outcomes = [], []
    for index in range(n):
        good = rng.random() < 0.75
        grades = [float(good if rng.random() < 0.93 else not good) for _ in range(annotators)]
        value = min(1.0, max(0.0, rng.gauss(0.85 if good else 0.45, 0.18)))
        text = "word " * int(math.exp(rng.gauss(4, 0.8)))
        probability = (0.8 if value < THRESHOLD else 0.1) if weighted else 1.0
        items.append(labelled(index, *grades, text=text or "word", probability=probability))
        outcomes.append(score(round(20 * value) / 20))
    return calibrated(items, outcomes, **options)  # type: ignore[arg-type]


def constant(n: int, *, label: float | None = None, value: float | None = None, **options: object) -> Calibrated:
    """Labels, or scores, that are all alike."""
    items = [labelled(index, float(index % 2) if label is None else label) for index in range(n)]
    outcomes = [score(((index // 2) % 2) * 0.8 + 0.1 if value is None else value) for index in range(n)]
    return calibrated(items, outcomes, **options)  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser reads: tags in order, the text, the tables; raises where tags do not fit."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.within: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
            for tag in set(self.open):
                self.within.setdefault(tag, []).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of(self, tag: str) -> str:
        return " ".join("".join(self.within.get(tag, ())).split())


def read(made: Calibrated) -> Page:
    return Page(render_html(made))


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


CASES: dict[str, Callable[[], Calibrated]] = {
    "sample": sample,
    "weighted": lambda: sample(weighted=True),
    "one annotator": lambda: sample(annotators=1),
    "one record": lambda: constant(1, label=1.0),
    "two records": lambda: constant(2),
    "all pass": lambda: constant(60, label=1.0),
    "all fail": lambda: constant(60, label=0.0),
    "undecided": lambda: constant(40, label=0.5),
    "one score": lambda: constant(60, value=1.0),
    "score 0": lambda: constant(60, value=0.0),
    "by hand": lambda: sample(selection="curated", synthetic=True, kind="author"),
    "no texts": lambda: calibrated(
        [labelled(i, float(i % 2), record=None, stratum=f"s{i % 3}") for i in range(60)],
        [score(i / 60) for i in range(60)],
    ),
    "levels": lambda: calibrated(
        [labelled(i, (i % 5) / 4, ((i + i % 2) % 5) / 4) for i in range(80)],
        [score(((i + i % 3) % 5) / 4) for i in range(80)],
        levels=(0.0, 0.25, 0.5, 0.75, 1.0),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> str:
    return render_html(CASES[request.param]())


# A page that is whole and alone.


def test_every_page_is_well_formed(page: str) -> None:
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert [tag for tag, _ in read.tags][:2] == ["html", "head"]
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert drawings(page)


def test_every_page_takes_nothing_from_elsewhere_and_runs_nothing(page: str) -> None:
    tags = Page(page).tags
    assert not {"script", "link", "img", "iframe", "object", "embed", "a", "base", "use", "image"} & {
        t for t, _ in tags
    }
    names = {name for _, attributes in tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("href", "src", "style", "xlink:href")}
    assert not re.search(r"https?:|//|url\(|@import|javascript:", page)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_page_has_no_number_that_is_none(page: str) -> None:
    shown = Page(page).text.lower()
    assert not re.search(r"\bnan\b|\binf\b|\bnone%|-0\.00\b|-0%", shown)
    for svg in drawings(page):
        assert "nan" not in " ".join(value for e in svg.iter() for value in e.attrib.values())


def test_every_table_has_a_caption_and_headed_rows(page: str) -> None:
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        root = ElementTree.fromstring(table)
        columns = len(root.findall("thead/tr/th"))
        assert root.findtext("caption")
        rows = root.findall("tbody/tr")
        assert rows
        assert {len(row) for row in rows} == {columns}
        assert all(row[0].get("scope") == "row" for row in rows)


def test_the_same_calibration_gives_the_same_page() -> None:
    assert render_html(sample()) == render_html(sample())


def test_ten_thousand_records_make_a_page_of_bounded_size() -> None:
    small, large = render_html(sample(400, annotators=1)), render_html(sample(10_000, annotators=1))
    assert len(large) < 1.5 * len(small) < 300_000
    assert len(Page(large).tags) < 3_000


# Hostile texts.


def hostile() -> Calibrated:
    """Everything that a file, a record or a judge can bring is hostile."""
    items = [
        labelled(
            index,
            float(index % 2),
            item_id=f"{index} {HOSTILE}",
            record=Record(
                record_id=f"{index} <b>",
                timestamp=MADE,
                input=HOSTILE,
                output=HOSTILE + "x" * 5_000,
                contexts=(Context(text=HOSTILE),) * 9,
                route=HOSTILE + str(index % 3),
                cohort={HOSTILE: HOSTILE + str(index % 12)},
            ),
            labels={HOSTILE: (float(index % 2),)},
            passes={HOSTILE: float(index % 2)},
            note=HOSTILE,
            stratum=HOSTILE + str(index % 3),
            cluster=HOSTILE + str(index % 20),
        )
        for index in range(60)
    ]
    claims = [{"claim": HOSTILE, "verdict": "supported"}, {"verdict": HOSTILE}, "no"]
    details = {"claims": claims, "items": {HOSTILE: "no"}}
    outcomes = [score((index // 2) % 2 * 0.8 + 0.1, HOSTILE, label=HOSTILE, details=details) for index in range(60)]
    outcomes[7] = Failure(kind="refused", message=HOSTILE)  # type: ignore[call-overload]
    return calibrated(items, outcomes, path=f"{HOSTILE.replace('/', '')}", judge=HOSTILE, description=HOSTILE)


def test_hostile_texts_stay_text() -> None:
    page = render_html(hostile())
    plain = Page(render_html(constant(60)))
    found = Page(page)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"span", "ul", "li", "blockquote"}
    names = {name for _, attributes in found.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href", "style")}
    assert "<script>alert(1)</script></style></title></svg>" in found.of("blockquote")
    assert "<script>" in found.of("title")
    for svg in drawings(page):
        assert {e.tag for e in svg.iter()} <= {
            "svg", "title", "desc", "g", "rect", "line", "path", "circle", "text",
        }  # fmt: skip
    page.encode("utf-8")


def test_hidden_and_turning_characters_are_shown() -> None:
    page = render_html(hostile())
    for code in ("202E", "202C", "2066", "200B", "0000", "001B", "E0041"):
        assert f"⟨U+{code}⟩" in page
    assert not set(page) & set("\u202e\u202c\u2066\u200b\x00\x1b\U000e0041")
    assert "مرحبا" in page


def test_hostile_texts_are_cut() -> None:
    page = read(hostile())
    left = len(HOSTILE) + 5_000 - MOST_TEXT
    assert f"… {left:,} more characters" in page.text
    assert "x" * (MOST_TEXT + 1) not in page.text
    assert "9 contexts" in page.text
    assert "5 more." in page.text


def test_texts_of_records_are_isolated_from_the_direction_of_the_page() -> None:
    tags = read(hostile()).tags
    assert all(attributes.get("dir") == "auto" for tag, attributes in tags if tag == "blockquote")


# What it says.


def test_the_findings_are_those_of_the_report() -> None:
    made = sample()
    text, report = read(made).text, made.report
    assert f"It flags {report.fail_recall.value:.0%} of the answers that people reject." in text
    assert f"People agree with {report.fail_precision.value:.0%} of its flags." in text
    assert f"Its kappa is {report.kappa.value:.2f}; annotators among themselves reach" in text
    assert (
        f"{report.fail_recall.lower:.0%} to {report.fail_recall.upper:.0%}, from {report.fail_recall.n} labels" in text
    )
    assert f"{report.share_of_ceiling:.0%} of that ceiling" in text
    for reason in report.reasons:
        assert reason[1:] in text
    for need in report.needs:
        assert need.sentence()[1:] in text


def test_the_verdict_marks_its_step() -> None:
    made = sample()
    steps = [a for tag, a in read(made).tags if tag == "li" and a.get("aria-current") == "step"]
    assert len(steps) == 1
    assert made.report.level != "no_data"
    assert f"kindness by openai:gpt-5-mini: {made.report.level.replace('_', ' ')}" in read(made).of("title").replace(
        "human-like", "human like"
    )


def test_a_bias_is_said_once_with_its_way() -> None:
    items = [labelled(i, 1.0 if i < 150 else 0.0) for i in range(200)]
    harsh = calibrated(items, [score(0.9 if i < 110 else 0.2) for i in range(200)])
    kind = calibrated(items, [score(0.9 if i < 180 else 0.2) for i in range(200)])
    assert "Its pass ratio reads 20 points too low: judge 55%, people 75%." in read(harsh).text
    assert "Its pass ratio reads 15 points too high: judge 90%, people 75%." in read(kind).text
    assert "It reads" not in read(harsh).text


def test_no_clear_bias() -> None:
    items = [labelled(i, 1.0 if i < 150 else 0.0) for i in range(200)]
    even = calibrated(items, [score(0.9 if 2 <= i < 153 else 0.2) for i in range(200)])
    assert "Its pass ratio shows no clear bias: judge 76%, people 75%." in read(even).text


def test_a_class_that_is_missing_is_said_and_not_made_up() -> None:
    page = read(constant(60, label=1.0))
    assert "How many bad answers it flags is not known: people fail none of the records." in page.text
    assert "Its agreement beyond chance is not known: 60 pass and 0 fail labels" in page.text
    assert "Nothing to draw: people pass all the records." in page.text
    assert "To say anything: at least 10 more labels, at least 10 fail among them." in page.text
    assert "there are labels enough" not in page.text


def test_a_judge_that_flags_nothing() -> None:
    page = read(constant(60, value=1.0))
    assert "What its flags are worth is not known: the judge flags none of the records." in page.text


def test_one_annotator_has_no_ceiling_and_it_says_so() -> None:
    page = read(sample(annotators=1))
    assert "Nothing to draw: no record has two annotators" in page.text
    assert "agreement of annotators (no record has two)" in page.text
    assert "where 0 is chance and 1 is perfect." in page.text


def test_without_texts_it_says_so() -> None:
    page = read(CASES["no texts"]())
    assert "The record's texts are not in the label file." in page.text
    assert "Nothing to draw: the judged answers are not at hand." in page.text
    assert "correlation with length (the judged answers are not at hand)" in page.text


def test_what_has_no_verdict_is_counted() -> None:
    items = [labelled(i, float(i % 2)) for i in range(60)]
    outcomes: list[Outcome | None] = [score(0.2 + 0.6 * (i % 2)) for i in range(60)]
    outcomes[3], outcomes[4], outcomes[5] = (
        Failure(kind="timeout", message="late"),
        NotApplicable(reason="no_claims"),
        None,
    )
    page = read(calibrated(items, outcomes))
    assert "57 labels" in page.of("header")
    assert "1 failed: timeout, 1 not_applicable: no_claims, 1 not_judged" in page.of("dd")
    assert "The judge gave no verdict on 1 of 60 records" in page.text


# Who labelled.


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("author", "The labels are by the authors of the records"),
        ("model", "The labels are a model's, not people's"),
        ("unknown", "The file does not say who gave the labels."),
    ],
)
def test_labels_that_no_person_gave_are_announced_and_never_called_human(kind: AnnotatorKind, said: str) -> None:
    page = read(sample(kind=kind, synthetic=True, selection="curated"))
    aside = page.of("aside")
    assert said in aside
    assert "The records are synthetic" in aside
    # Loud, and only there.
    assert page.text.count(said) == 1
    rest = page.text.replace(aside, "").replace("human-like", "")
    assert "people" not in rest.lower()
    assert "human" not in rest.lower()


def test_labels_that_people_gave_need_no_announcement() -> None:
    assert read(sample()).of("aside") == ""


def test_synthetic_records_are_announced_whoever_labelled_them() -> None:
    assert read(sample(synthetic=True)).of("aside").startswith("The records are synthetic")


def test_weighted_shares_are_said_to_be_weighted() -> None:
    assert "Counts are plain; shares are weighted by how the labels were picked." in read(sample(weighted=True)).text
    assert "weighted by how" not in read(sample()).text


# Disagreements.


def test_disagreements_come_with_both_explanations_the_worst_first() -> None:
    items = [labelled(i, 1.0 if i % 2 else 0.0, note=f"note {i}", text=f"answer {i}") for i in range(60)]
    outcomes = [score(0.9 if i % 2 else 0.1) for i in range(60)]
    outcomes[2] = score(0.75, "judge on 2")
    outcomes[4] = score(0.95, "judge on 4")
    outcomes[7] = score(0.3, "judge on 7")
    text = read(calibrated(items, outcomes)).text
    missed, flagged = text.split("Missed: people fail it, the judge passes it")[1].split("False flags:")
    assert missed.index("r00004") < missed.index("r00002")
    for said in ("judge on 4", "note 4", "answer 4", "judge on 2", "note 2", "score 0.95", "People: fail (anna fail)"):
        assert said in missed
    assert "judge on 7" in flagged
    assert "r00006" not in text


def test_disagreements_are_bounded() -> None:
    page = read(calibrated([labelled(i, float(i >= 50)) for i in range(100)], [score(0.9) for _ in range(100)]))
    assert f"the worst {MOST_DISAGREEMENTS} of 50" in page.text
    assert len([tag for tag, _ in page.tags if tag == "article"]) == MOST_DISAGREEMENTS
    assert "False flags: people pass it, the judge fails it none" in page.text


def test_the_parts_of_a_verdict_that_its_explanation_leaves_out_are_listed() -> None:
    claims = [
        {"claim": "The bus runs.", "verdict": "supported", "quote_found": True},
        {"claim": "It is free.", "verdict": "unsupported"},
        {"claim": "It is red.", "verdict": "supported", "quote_found": False},
    ]
    items = [labelled(i, float(i % 2)) for i in range(4)]
    outcomes = [
        score(0.9),
        score(0.33, "unsupported: It is free.", details={"claims": claims}),
        score(0.1),
        score(0.1, details={"items": {"facts": "yes", "tone": "no"} | {f"q{i}": "na" for i in range(20)}}),
    ]
    text = read(calibrated(items, outcomes)).text
    assert "supported: The bus runs." in text
    assert text.count("It is free.") == 1
    assert "It is red." not in text
    assert text.index("tone: no") < text.index("facts: yes")
    assert "q5: na" in text
    assert "q6: na" not in text
    assert "14 more" in text


# Provenance.


def test_provenance_is_complete() -> None:
    made = sample()
    found = read(made).of("dd")
    for value in (
        made.calibration.rubric_hash,
        made.calibration.rubric_version,
        made.calibration.judge_fingerprint,
        made.calibration.labels_sha256,
        made.calibration.calibration_id,
        "kindness.jsonl",
        "people, 3 in all",
        "2026-11-03 to 2026-11-04",
        "by known probabilities, all alike",
        "majority",
        "2026-11-20 10:00 UTC",
        "800 prompt and 90 reply tokens",
    ):
        assert value in found


# The numbers behind the plots.


def figure(made: Calibrated, name: str):
    return next(found for found in figures(made) if found.name == name)


def test_the_area_under_the_drawn_curve_is_the_auc() -> None:
    made = sample(weighted=True)
    curve = roc_curve(Labels(made))
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(curve))
    columns = made.columns
    assert area == pytest.approx(roc_auc_score(columns.y_true, columns.y_score, sample_weight=columns.sample_weight))
    assert curve[0] == (0.0, 0.0)
    assert curve[-1] == (1.0, 1.0)


def test_the_operating_point_is_on_the_curve() -> None:
    made = sample()
    rates = made.report.rates
    assert rates.sensitivity is not None
    assert rates.specificity is not None
    here = (1 - rates.sensitivity.value, rates.specificity.value)
    assert any(point == pytest.approx(here) for point in roc_curve(Labels(made)))


def test_reliability_bins_are_those_of_the_calibration_curve() -> None:
    made = sample()
    columns = made.columns
    expected = calibration_curve(columns.y_true, columns.y_prob, sample_weight=columns.sample_weight)
    rows = figure(made, "reliability").rows
    assert [int(row[3]) for row in rows] == [part.n for part in expected]
    assert sum(int(row[3]) for row in rows) == 200
    shares = [float(row[1].rstrip("%")) for row in rows]
    assert shares == pytest.approx([100 * part.share_passed for part in expected], abs=0.51)


def test_the_histogram_shares_add_up_to_each_class() -> None:
    drawing = figure(sample(), "histogram").drawing
    svg = ElementTree.fromstring(drawing)
    for kind in ("pass", "fail"):
        bars = [e.findtext("title") or "" for e in svg.iter() if e.get("class") == f"bar {kind}"]
        shares = [float(re.findall(r"([0-9.]+)%", bar)[0]) for bar in bars]
        assert sum(shares) == pytest.approx(100, abs=0.5 * len(shares))


def test_scores_on_the_threshold_stand_right_of_its_line() -> None:
    made = calibrated([labelled(i, float(i % 2)) for i in range(40)], [score((0.65, 0.7)[i % 2]) for i in range(40)])
    svg = ElementTree.fromstring(figure(made, "histogram").drawing)
    line = next(float(e.get("x1", "")) for e in svg.iter() if e.get("class") == "threshold")
    (passes,) = [e for e in svg.iter() if e.get("class") == "bar pass"]
    (fails,) = [e for e in svg.iter() if e.get("class") == "bar fail"]
    assert float(passes.get("x", "")) == pytest.approx(line + 0.5, abs=0.02)
    assert float(fails.get("x", "")) + float(fails.get("width", "")) == pytest.approx(line - 0.5, abs=0.02)


def test_groups_show_judge_and_people_of_each() -> None:
    items = [labelled(i, float(i % 4 > 0), stratum=("long", "short")[i % 2]) for i in range(80)]
    made = calibrated(items, [score(0.9) for _ in range(80)])
    found = figure(made, "groups")
    rows = {row[0]: row for row in found.rows}
    assert rows["all labels"][1].startswith("75% (")
    assert rows["all labels"][2].startswith("100% (")
    assert rows["stratum: long"][1].startswith("50% (")
    assert rows["stratum: short"][1].startswith("100% (")
    assert {"route: chat", "cohort region: eu"} <= set(rows)
    assert not any(name.startswith("app") for name in rows)
    assert "long (+50)" in found.finding


def test_many_groups_are_gathered() -> None:
    items = [labelled(i, float(i % 2), stratum=f"s{i % 30:02d}") for i in range(120)]
    rows = [row for row in figure(calibrated(items, [score(0.9)] * 120), "groups").rows if row[0].startswith("stratum")]
    assert len(rows) == MOST_GROUPS + 1
    assert rows[-1][0] == "stratum: 22 others"
    assert sum(int(row[3]) for row in rows) == 120


def test_groups_of_one_record_each_and_any_number_of_cohorts_are_bounded() -> None:
    items = [labelled(i, float(i % 2)) for i in range(500)]
    for index, item in enumerate(items):
        cohort = {f"key {k}": f"{index} {k}" for k in range(30)}
        items[index] = replace(item, record=replace(item.record, cohort=cohort))
    found = figure(calibrated(items, [score(0.9)] * 500), "groups")
    assert len(found.rows) <= 3 + MOST_COHORTS * (MOST_GROUPS + 1)


def test_length_bins_hold_all_records_and_points_are_bounded() -> None:
    made = sample(800, annotators=1)
    found = figure(made, "length")
    assert len(found.rows) == LENGTH_BINS
    assert sum(int(row[3]) for row in found.rows) == 800
    svg = ElementTree.fromstring(found.drawing)
    assert len([e for e in svg.iter() if e.get("class") == "dot"]) == MOST_POINTS


def test_a_judge_that_length_sways_is_found_out() -> None:
    items = [labelled(i, 1.0 if i % 3 else 0.0, text="x" * (10 + 7 * i)) for i in range(150)]
    made = calibrated(items, [score(min(1.0, 0.3 + i / 300 + 0.2 * (i % 3 > 0))) for i in range(150)])
    assert figure(made, "length").finding.startswith("It is kinder than people to long answers")


def test_the_ceiling_stands_beside_the_judge() -> None:
    made = sample()
    found, ceiling = figure(made, "ceiling"), made.report.ceiling
    assert ceiling is not None
    rows = {row[0]: row for row in found.rows}
    assert rows["kappa"][1].startswith(f"{ceiling.judge_kappa.value:.2f} (")
    assert rows["kappa"][2].startswith(f"{ceiling.kappa.value:.2f} (")
    assert len(rows["kappa of each annotator"][2].split(", ")) == 3
    assert "weighted kappa" in {row[0] for row in figure(CASES["levels"](), "ceiling").rows}


# Colours.


def palettes() -> list[dict[str, str]]:
    """The colours of the light page, the dark page and print."""
    css = files("assay").joinpath("data", "report.css").read_text(encoding="utf-8")
    return [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(top: str, bottom: str, opacity: float) -> str:
    parts = ((int(top[at : at + 2], 16), int(bottom[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in parts)


@pytest.mark.parametrize("palette", palettes(), ids=("light", "dark", "print"))
def test_text_and_marks_can_be_told_from_what_is_behind_them(palette: dict[str, str]) -> None:
    for ground in ("bg", "surface"):
        for text in ("ink", "muted"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for text in ("judge", "pass", "fail"):
        assert contrast(palette[text], palette["surface"]) >= 4.4, text
    assert contrast(palette["ink"], palette["warn"]) >= 7
    for mark in ("judge", "people", "pass", "fail", "plain"):
        assert contrast(palette[mark], palette["surface"]) >= 3, mark
    # Words on the fullest cells of the confusion matrix.
    for cell in ("pass", "fail"):
        assert contrast(palette["ink"], mixed(palette[cell], palette["surface"], 0.5)) >= 4.5


def test_there_are_three_palettes_of_the_same_names() -> None:
    light, dark, paper = palettes()
    assert light.keys() == dark.keys() == paper.keys()
    assert paper["surface"] == "#ffffff"


def test_every_colour_of_the_style_sheet_is_of_the_palette() -> None:
    css = files("assay").joinpath("data", "report.css").read_text(encoding="utf-8")
    rules = re.sub(r":root \{.*?\}", "", css, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-f]{3,8}\b|rgb|hsl", rules)
    used = set(re.findall(r"var\(--([a-z-]+)\)", rules))
    assert used <= palettes()[0].keys()


def test_every_class_is_in_the_style_sheet() -> None:
    css = files("assay").joinpath("data", "report.css").read_text(encoding="utf-8")
    known = set(re.findall(r"\.([a-z][a-z-]*)", css))
    pages = [render_html(CASES[name]()) for name in ("sample", "levels", "by hand", "no texts")] + [
        render_html(hostile())
    ]
    used = {name for page in pages for _, a in Page(page).tags for name in (a.get("class") or "").split()}
    assert used <= known
