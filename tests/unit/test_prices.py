"""The price table: what a call costs, and every mistake in a file said with its line."""

from datetime import date

import pytest

from assay.errors import SettingsError
from assay.judges._prices import Price, load_prices

GOOD = """\
as_of: "2026-01-31"
models:
  judge-1: {prompt: 0.25, cached_prompt: 0.025, completion: 2.00}
  house-model: {prompt: 0, completion: 0}
"""


def written(tmp_path, text: str | bytes):
    path = tmp_path / "prices.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_shipped_table_is_valid_dated_and_knows_the_default_model():
    prices = load_prices()
    assert prices.as_of > date(2026, 1, 1)
    assert len(prices.models) >= 20
    for model, price in prices.models.items():
        if "embedding" in model:
            assert price.completion == 0 < price.prompt, model
            continue
        assert 0 < price.prompt <= price.completion, model
        assert price.cached_prompt is not None, model
        assert price.cached_prompt <= price.prompt, model
    assert prices.of("gpt-5-mini") == Price(prompt=0.25, cached_prompt=0.025, completion=2.0)


def test_a_file_of_ones_own_replaces_it(tmp_path):
    prices = load_prices(written(tmp_path, GOOD))
    assert prices.as_of == date(2026, 1, 31)
    assert set(prices.models) == {"judge-1", "house-model"}


def test_a_day_without_quotes_is_a_day(tmp_path):
    assert load_prices(written(tmp_path, GOOD.replace('"', ""))).as_of == date(2026, 1, 31)


def test_a_model_is_found_by_the_first_name_that_is_listed_with_or_without_its_date(tmp_path):
    prices = load_prices(written(tmp_path, GOOD))
    listed = prices.models["judge-1"]
    assert prices.of("judge-1-2026-01-31", None) is listed
    assert prices.of("judge-1-20260131") is listed
    assert prices.of("alias", "judge-1") is listed
    assert prices.of(None, "judge-1-mini", "judge") is None
    assert prices.of() is None


def test_costs_add_up_with_cached_tokens_at_their_own_price():
    price = Price(prompt=1.0, cached_prompt=0.1, completion=10.0)
    assert price.cost_usd(prompt_tokens=1_000_000, completion_tokens=100_000) == pytest.approx(2.0)
    cached = price.cost_usd(prompt_tokens=1_000_000, completion_tokens=0, cached_prompt_tokens=400_000)
    assert cached == pytest.approx(0.64)


def test_without_a_cached_price_cached_tokens_cost_what_others_do():
    price = Price(prompt=1.0, completion=10.0)
    assert price.cost_usd(prompt_tokens=10, completion_tokens=0, cached_prompt_tokens=5) == pytest.approx(1e-5)


def test_more_cached_tokens_than_tokens_never_cost_less_than_nothing():
    price = Price(prompt=1.0, cached_prompt=0.0, completion=1.0)
    assert price.cost_usd(prompt_tokens=10, completion_tokens=0, cached_prompt_tokens=99) == 0.0


def test_a_model_at_0_costs_0_and_is_not_unknown(tmp_path):
    price = load_prices(written(tmp_path, GOOD)).of("house-model")
    assert price is not None
    assert price.cost_usd(prompt_tokens=10**9, completion_tokens=10**9) == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "prices.yaml: is empty"),
        (GOOD + "x: &x [*x]\n", ":5: "),
        (GOOD + "x: " + "[" * 10_000, "nested deeper than"),
        (GOOD + "#" * 1_000_000, "is larger than"),
        (GOOD.replace('"2026-01-31"', "2026-02-31"), "day"),
        ("- 1\n", "must be a mapping"),
        (GOOD.replace("as_of", "as_off"), ":1: as_off: is not known: did you mean as_of?"),
        (GOOD.replace('"2026-01-31"', '"January"'), ":1: as_of: must be the day of the prices"),
        (GOOD.replace('"2026-01-31"', "7"), ":1: as_of: must be the day"),
        ("models: {m: {prompt: 1, completion: 1}}\n", "as_of: must be the day"),
        ('as_of: "2026-01-31"\n', "models: must list at least one model"),
        ('as_of: "2026-01-31"\nmodels: []\n', ":2: models: must list"),
        (GOOD.replace("{prompt: 0, completion: 0}", "free"), ":4: models.house-model: must be a mapping"),
        (GOOD.replace("prompt: 0.25", "promt: 0.25"), ":3: models.judge-1.promt: is not known: did you mean prompt?"),
        (GOOD.replace("prompt: 0,", "spam: 0,"), "models.house-model.spam: is not known"),
        (GOOD.replace(", completion: 2.00", ""), ":3: models.judge-1.completion: is missing"),
        (GOOD.replace("0.25", "-1"), ":3: models.judge-1.prompt: -1 is not a number"),
        (GOOD.replace("0.25", ".nan"), "models.judge-1.prompt: nan is not"),
        (GOOD.replace("0.25", ".inf"), "models.judge-1.prompt: inf is not"),
        (GOOD.replace("0.25", "true"), "models.judge-1.prompt: True is not"),
        (GOOD.replace("0.25", '"0.25"'), "models.judge-1.prompt: '0.25' is not"),
        (GOOD + "  judge-1: {prompt: 1, completion: 1}\n", "judge-1"),
        ("as_of: [\n", "prices.yaml:"),
        (b"as_of: \xff\xfe\n", "prices.yaml"),
    ],
)
def test_every_mistake_is_said_with_its_place(tmp_path, text, said):
    with pytest.raises(SettingsError) as raised:
        load_prices(written(tmp_path, text))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"price table .*missing\.yaml"):
        load_prices(tmp_path / "missing.yaml")
