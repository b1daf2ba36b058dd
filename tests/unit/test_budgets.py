"""What people write as budgets, the pure decisions, and what is refused before anything is spent."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay import wiring
from assay.budgets import (
    Balance,
    Budget,
    Budgets,
    Meter,
    check_budgets_file,
    is_thinned,
    load_budgets,
    thinning,
)
from assay.errors import ConfigError, FileError, RecordError, SettingsError
from assay.judges import JudgeSettings
from assay.pipeline import Judges
from assay.queue import decode_batch, encode_batch
from assay.records import Usage, now
from assay.rubrics import JudgeSpec, Rubric
from assay.sampling import sample_unit
from assay.settings import Settings, load_settings
from judging import ordinal

GOOD = """\
budgets:
  - name: total
    usd: 20
    per: day
  - name: shop_relevance
    app: shop
    rubric: relevance
    judge: openai:gpt-5-mini
    tokens: 2000000
    usd: 0.5
    per: hour
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "budgets.yaml"


# -- the file


def test_a_file_of_budgets(file: Path) -> None:
    file.write_text(GOOD)
    total, relevance = load_budgets(file)
    assert total == Budget(name="total", per="day", usd=20)
    assert relevance.covers(app="shop", rubric="relevance", judge="openai:gpt-5-mini")
    assert [meter.key for meter in relevance.meters] == ["shop_relevance:hour:usd", "shop_relevance:hour:tokens"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("usd: 20", "usd: -1", "3: budgets[0].usd: -1 is out of range"),
        ("usd: 20", "usd: 20 EUR", "3: budgets[0].usd: must be a number"),
        ("usd: 20", "usd: .inf", "3: budgets[0].usd: .inf is not a plain decimal number"),
        ("    usd: 20\n", "", "2: budgets[0]: has no limit: write `usd: 20`"),
        ("per: day", "per: week", "4: budgets[0].per: week is not known: known are hour, day, month"),
        ("per: day", "par: day", "4: budgets[0].par: is not a field: did you mean per?"),
        ("    per: day\n", "", "2: budgets[0].per: is missing: write, for example"),
        ("name: total", "name: Total", "2: budgets[0].name: Total will not do"),
        ("name: shop_relevance", "name: total", "5: budgets[1].name: total is the name of the budget on line 2 too"),
        ("tokens: 2000000", "tokens: 1.5", "9: budgets[1].tokens: must be a whole number"),
        ("budgets:", "limits:", "1: limits: is not a field: known are budgets"),
        (GOOD, "", "is empty: write the fields of a list of budgets"),
        (GOOD, "budgets: []", "1: budgets: has 0 entries"),
        (GOOD, "budgets: [", "is not YAML"),
        (GOOD, "- 1", "must be fields"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(file: Path, old: str, new: str, told: str) -> None:
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(FileError) as error:
        load_budgets(file)
    assert str(error.value).startswith(str(file))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert str(check_budgets_file(file)[0]) == str(error.value)


def test_all_mistakes_are_found_at_once(file: Path) -> None:
    file.write_text(GOOD.replace("per: day", "per: week").replace("usd: 0.5", "usd: x"))
    assert [error.line for error in check_budgets_file(file)] == [4, 10]


def test_a_rubric_or_judge_that_there_is_not_is_a_mistake(file: Path) -> None:
    file.write_text(GOOD)
    with pytest.raises(FileError, match=r":7: budgets\[1\].rubric: no rubric is called relevance: there is safety"):
        load_budgets(file, rubrics=["safety"])
    with pytest.raises(FileError, match=r":8: .*no judge is called openai:gpt-5-mini: there is lexical"):
        load_budgets(file, judges=["lexical"])
    assert len(load_budgets(file, rubrics=["relevance"], judges=["openai:gpt-5-mini"])) == 2


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        load_budgets(file)


# -- amounts


def test_amounts_are_whole_and_rounded_up_and_limits_down() -> None:
    money, tokens = Budget(name="b", per="day", usd=0.1234567899, tokens=7).meters
    assert (money.limit, tokens.limit) == (123_456_789, 7)
    used = Usage(prompt_tokens=3, completion_tokens=1, cost_usd=1e-10)
    assert (money.amount(used), tokens.amount(used, 1 / 3)) == (1, 2)
    assert money.amount(Usage(prompt_tokens=1)) is None
    assert tokens.amount(Usage(prompt_tokens=1, cost_usd=1.0)) is None


@given(usd=st.floats(0, 1_000_000), parts=st.integers(1, 20), covered=st.integers(1, 20))
def test_shares_of_a_call_are_never_less_than_the_call(usd: float, parts: int, covered: int) -> None:
    (meter,) = Budget(name="b", per="day", usd=1).meters
    share = min(covered, parts) / parts
    amount = meter.amount(Usage(cost_usd=usd), share)
    assert amount is not None
    assert amount >= usd * share * 1e9 - 1e-3 * max(1.0, usd)
    assert amount < 2**53


def test_two_budgets_of_one_name_are_refused() -> None:
    one = Budget(name="b", per="day", usd=1)
    with pytest.raises(SettingsError, match="two budgets are called b"):
        Budgets(budgets=(one, one))


def test_a_balance_shows_what_is_left() -> None:
    def balance(limit: float, spent: float, reserved: float) -> Balance:
        meter = Meter(Budget(name="b", per="day", usd=limit), "usd")
        moment = now()
        return Balance(meter=meter, limit=limit, spent=spent, reserved=reserved, window_start=moment, resets_at=moment)

    assert (balance(10, 4, 1).left, balance(10, 4, 1).used) == (5, 0.4)
    assert (balance(10, 12, 0).left, balance(10, 12, 0).used) == (0, 1.2)
    assert (balance(0, 0, 0).left, balance(0, 0, 0).used) == (0, 1.0)


# -- thinning

SHARES = st.floats(0, 1)


@given(used=st.floats(0, 2), more=st.floats(0, 1), start=st.floats(0.01, 1), least=st.floats(0.01, 1))
def test_the_more_is_spent_the_fewer_are_judged(used: float, more: float, start: float, least: float) -> None:
    chance = thinning(used, start=start, least=least)
    assert least <= chance <= 1.0
    assert thinning(used + more, start=start, least=least) <= chance
    if used <= start:
        assert chance == 1.0


def test_the_rest_is_shared_out() -> None:
    assert thinning(0.8, start=0.8, least=0.1) == 1.0
    assert thinning(0.9, start=0.8, least=0.1) == pytest.approx(0.5)
    assert thinning(0.99, start=0.8, least=0.1) == 0.1
    assert thinning(5.0, start=1.0, least=0.1) == 1.0, "1 turns it off"


@given(record_id=st.text(min_size=1, max_size=40), a=st.floats(0.01, 1), b=st.floats(0.01, 1))
def test_what_a_low_probability_keeps_a_higher_one_keeps_too(record_id: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if not is_thinned(record_id, low):
        assert not is_thinned(record_id, high)


def test_thinning_does_not_follow_what_the_client_sampled_by() -> None:
    """Of the records that a client took at 10 %, half are kept: another hash of the same id would keep all, or none."""
    sampled = [key for key in map(str, range(40_000)) if sample_unit(key) < 0.1]
    kept = sum(not is_thinned(key, 0.5) for key in sampled)
    # Five standard deviations of a fair coin.
    assert abs(kept - len(sampled) / 2) < 5 * math.sqrt(len(sampled) / 4)


def test_weights_make_up_for_what_is_left_out() -> None:
    """The weighted pass ratio of a stream whose quality falls as the budget runs out is that of all of it."""
    draw = random.Random(3)
    total = passes = kept_w = kept_wp = 0.0
    spent, limit = 0.0, 10_000.0
    for number in range(40_000):
        chance = thinning(spent / limit, start=0.5, least=0.05)
        passed = draw.random() < 0.9 - 0.6 * number / 40_000
        total, passes = total + 1, passes + passed
        if not is_thinned(f"r-{number}", chance):
            spent += 0.4
            kept_w, kept_wp = kept_w + 1 / chance, kept_wp + passed / chance
    assert kept_w == pytest.approx(total, rel=0.05)
    assert kept_wp / kept_w == pytest.approx(passes / total, abs=0.02)
    assert spent < limit


# -- what travels with a retry


def test_a_batch_carries_what_was_decided() -> None:
    payload = encode_batch(["{}"], batch_id="b", enqueued_at=1.0, probabilities={"hash": 0.25})
    assert decode_batch(payload).probabilities == {"hash": 0.25}
    plain = encode_batch(["{}"], batch_id="b", enqueued_at=1.0)
    assert decode_batch(plain).probabilities == {}
    assert b"probabilities" not in plain, "clients of before this field see nothing new"


@pytest.mark.parametrize("wrong", ["0", "-1", "2", '"x"', "null"])
def test_a_probability_that_is_none_is_refused(wrong: str) -> None:
    head = '{"schema_version":1,"batch_id":"b","enqueued_at":1,"records":[{}],"probabilities":'
    with pytest.raises(RecordError, match="probabilities"):
        decode_batch(f'{head}{{"h":{wrong}}}}}'.encode())
    with pytest.raises(RecordError, match="probabilities"):
        decode_batch(f"{head}{wrong}}}".encode())


# -- settings


def configured(tmp_path: Path, **given: Any) -> Settings:
    base: dict[str, Any] = {"judge": "openai", "judge_api_key": "synthetic", "judge_model": "gpt-5-mini"}
    return load_settings(**(base | {"data_dir": tmp_path} | given))


@pytest.fixture
def rubrics() -> list[Rubric]:
    return [ordinal("relevance"), ordinal("completeness")]


def test_without_budgets_there_is_nothing_to_ask(tmp_path: Path, rubrics: list[Rubric]) -> None:
    assert wiring.read_budgets(configured(tmp_path), rubrics) is None


def test_the_simple_case_and_the_file_add_up(tmp_path: Path, file: Path, rubrics: list[Rubric]) -> None:
    file.write_text(GOOD.replace("name: total", "name: all"))
    found = wiring.read_budgets(configured(tmp_path, budget_usd_per_day=3.0, budgets=file), rubrics)
    assert found is not None
    assert [budget.name for budget in found.budgets] == ["total", "all", "shop_relevance"]
    assert found.budgets[0] == Budget(name="total", per="day", usd=3.0)
    file.write_text(GOOD)
    with pytest.raises(FileError, match="total is what ASSAY_BUDGET_USD_PER_DAY is called"):
        wiring.read_budgets(configured(tmp_path, budget_usd_per_day=3.0, budgets=file), rubrics)


def test_dollars_without_a_price_are_refused_at_the_start(tmp_path: Path, file: Path, rubrics: list[Rubric]) -> None:
    unknown = configured(tmp_path, judge_model="my-own", budget_usd_per_day=3.0)
    with pytest.raises(SettingsError, match="budget total: it is in USD, and the price of my-own is not known: list"):
        wiring.read_budgets(unknown, rubrics)
    file.write_text("budgets: [{name: t, tokens: 5, per: day}]")
    assert wiring.read_budgets(configured(tmp_path, judge_model="my-own", budgets=file), rubrics) is not None


def test_dollars_need_the_price_of_each_judge_that_they_cover(
    tmp_path: Path, file: Path, rubrics: list[Rubric]
) -> None:
    own = ordinal("other", judge=JudgeSpec(engine="openai", model="my-own"))
    with pytest.raises(SettingsError, match="price of my-own"):
        wiring.read_budgets(configured(tmp_path, budget_usd_per_day=3.0), [*rubrics, own])
    file.write_text("budgets: [{name: t, usd: 5, per: day, rubric: relevance}]")
    assert wiring.read_budgets(configured(tmp_path, budgets=file), [*rubrics, own]) is not None
    cheaper = configured(tmp_path, budgets=file, budget_judge="openai", budget_judge_model="my-cheap")
    with pytest.raises(SettingsError, match="price of my-cheap"):
        wiring.read_budgets(cheaper, rubrics)


def test_dollars_need_the_price_of_embeddings_where_a_judge_asks_for_them(tmp_path: Path, file: Path) -> None:
    def rubric(metric: str) -> Rubric:
        return ordinal("other", judge=JudgeSpec(engine="ragas", metric=metric, embedding_model="my-vectors"))

    with pytest.raises(SettingsError, match="price of my-vectors is not known"):
        wiring.read_budgets(configured(tmp_path, budget_usd_per_day=3.0), [rubric("answer_relevancy")])
    assert wiring.read_budgets(configured(tmp_path, budget_usd_per_day=3.0), [rubric("faithfulness")]) is not None


def test_judges_that_ask_no_model_need_no_price(tmp_path: Path, rubrics: list[Rubric]) -> None:
    keyless = configured(tmp_path, judge="lexical", budget_usd_per_day=3.0)
    assert wiring.read_budgets(keyless, rubrics) is not None


@pytest.mark.parametrize(
    "given",
    [{"budget_judge": "openai"}, {"budget_judge_model": "m"}, {"budget_judge": "rules", "budget_judge_model": "m"}],
)
def test_a_cheaper_judge_is_named_whole(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="ASSAY_BUDGET_JUDGE"):
        configured(tmp_path, **given)


@pytest.mark.parametrize("given", [{"budget_thin_from": 0}, {"budget_thin_least": 0}, {"budget_usd_per_day": -1}])
def test_settings_out_of_range(tmp_path: Path, given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="ASSAY_BUDGET_"):
        configured(tmp_path, **given)


# -- the cheaper judge


def test_a_rubric_s_own_cheaper_judge_goes_before_that_of_the_settings() -> None:
    own = ordinal("own", cheaper_judge=JudgeSpec(engine="rules"))
    plain = ordinal("plain")
    same = ordinal("same", judge=JudgeSpec(engine="lexical"))
    settings = JudgeSettings(engine="openai", model="m", base_url="http://localhost:1/v1")
    judges = Judges.build([own, plain, same], settings, cheaper=JudgeSpec(engine="lexical"))
    found = [judges.stand_ins(rubric).get("budget") for rubric in (own, plain, same)]
    assert [judge and judge.name for judge in found] == ["rules", "lexical", None], "none stands in for itself"
    assert {judge.name for judge in judges} == {"openai:m", "rules", "lexical"}
    assert Judges.build([plain], settings).stand_ins(plain) == {}


def test_a_cheaper_judge_changes_no_hash() -> None:
    assert ordinal("a", cheaper_judge=JudgeSpec(engine="rules")).hash == ordinal("a").hash
