"""Distribution functions against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from assay.calibration.distributions import (
    betainc,
    betaincinv,
    chi2_cdf,
    chi2_ppf,
    gammainc,
    norm_ppf,
    t_cdf,
    t_ppf,
)

shapes = st.floats(0.5, 5000)
probabilities = st.floats(1e-6, 1 - 1e-6)


@given(shapes, shapes, st.floats(0, 1))
def test_betainc(a, b, x):
    assert betainc(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-13)


@given(shapes, shapes, probabilities)
def test_betaincinv(a, b, p):
    assert betaincinv(a, b, p) == pytest.approx(special.betaincinv(a, b, p), rel=1e-7, abs=1e-12)


@given(st.floats(0.5, 2000), st.floats(0, 5000))
def test_gammainc(a, x):
    assert gammainc(a, x) == pytest.approx(special.gammainc(a, x), rel=1e-9, abs=1e-13)


@given(st.integers(1, 500), probabilities)
def test_chi2(df, p):
    quantile = stats.chi2.ppf(p, df)
    assert chi2_ppf(p, df) == pytest.approx(quantile, rel=1e-7, abs=1e-12)
    assert chi2_cdf(quantile, df) == pytest.approx(p, rel=1e-8, abs=1e-12)


@given(st.one_of(st.integers(1, 30), st.integers(31, 100_000)), st.floats(1e-4, 1 - 1e-4))
def test_t(df, p):
    quantile = stats.t.ppf(p, df)
    assert t_ppf(p, df) == pytest.approx(quantile, rel=1e-7, abs=1e-7)
    assert t_cdf(quantile, df) == pytest.approx(p, rel=1e-8)


@given(probabilities)
def test_norm_ppf(p):
    assert norm_ppf(p) == pytest.approx(stats.norm.ppf(p), abs=1e-9)


def test_ends():
    assert (betainc(2, 3, 0.0), betainc(2, 3, 1.0)) == (0.0, 1.0)
    assert (betaincinv(2, 3, 0.0), betaincinv(2, 3, 1.0)) == (0.0, 1.0)
    assert chi2_ppf(0.0, 4) == 0.0
    assert t_ppf(0.5, 7) == pytest.approx(0.0, abs=1e-12)
    assert t_ppf(0.025, 10) == -t_ppf(0.975, 10)
