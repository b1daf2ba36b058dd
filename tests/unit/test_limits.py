"""What endpoints say of their limits, in the forms in which they say it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from assay.limits import endpoint_id, read_duration, read_limits

PRESENT = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1s", 1.0),
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("12", 12.0),
        ("0", 0.0),
        ("2026-01-31T12:00:30Z", 30.0),
        ("2026-01-31T11:00:30Z", 0.0),
        ("2026-01-31T12:00:30", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("5x", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    found = read_duration(text, PRESENT)
    assert found is None if seconds is None else found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-reset-requests": "120ms",
                "x-ratelimit-limit-tokens": "200000",
                "x-ratelimit-reset-tokens": "6s",
            },
            (500, 200_000),
        ),
        # A day's requests by the name of a minute's.
        (
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-limit-tokens": "18000",
                "x-ratelimit-reset-tokens": "7.66s",
            },
            (None, 18_000),
        ),
        ({"x-ratelimit-limit-requests-minute": "30", "x-ratelimit-limit-tokens-minute": "60000"}, (30, 60_000)),
        ({"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-tokens-limit": "40000"}, (50, 40_000)),
        ({"x-ratelimit-limit-requests": "many", "x-ratelimit-limit-tokens": "-5"}, (None, None)),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-limit-tokens": "9" * 400}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_limits_in_headers(headers: dict[str, str], expected: tuple[int | None, int | None]) -> None:
    assert read_limits(headers) == expected


def test_an_endpoint_and_model_have_one_id() -> None:
    assert endpoint_id("http://a/v1", "m") == endpoint_id("http://a/v1/", "m")
    assert len({endpoint_id("http://a/v1", "m"), endpoint_id("http://b/v1", "m"), endpoint_id("http://a/v1", "n")}) == 3
