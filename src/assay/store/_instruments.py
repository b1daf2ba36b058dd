"""What measures: its name, and how tables of what is kept of it say which it is."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa


class InstrumentName(NamedTuple):
    """What measures: one revision of a rubric, asked of one configuration of a judge."""

    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str

    @classmethod
    def of(cls, named: object) -> InstrumentName:
        """The one that a row or an object with attributes of these names is of."""
        return cls(*(getattr(named, name) for name in cls._fields))

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.rubric, self.rubric_hash, self.judge_fingerprint


_KEY = ("rubric", "rubric_hash", "judge_fingerprint")


def instrument_columns() -> list[sa.Column[str]]:
    """Of a table with many rows of an instrument."""
    return [sa.Column(name, sa.Text, nullable=False) for name in InstrumentName._fields]


def instrument_key_columns() -> list[sa.Column[str]]:
    """Of a table with one row of an instrument."""
    rest = [name for name in InstrumentName._fields if name not in _KEY]
    key = [sa.Column(name, sa.Text, primary_key=True) for name in _KEY]
    return [*key, *(sa.Column(name, sa.Text, nullable=False) for name in rest)]


def key_of(table: sa.Table) -> list[sa.Column[str]]:
    """The columns that tell instruments apart."""
    return [table.c[name] for name in _KEY]


def is_of(table: sa.Table, instrument: InstrumentName) -> sa.ColumnElement[bool]:
    """Whether a row is of this instrument."""
    return sa.and_(*(column == value for column, value in zip(key_of(table), instrument.key, strict=True)))
