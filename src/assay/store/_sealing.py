"""Texts encrypted at rest, under keys that the deployment keeps apart from the database.

What is sealed begins with a mark, so that what was stored in plain before is still read. The cipher is Fernet of
`cryptography` (AES-128-CBC with HMAC-SHA256): authenticated, with a format that other tools read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from assay.errors import MissingExtraError, SettingsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.fernet import Fernet, MultiFernet

#: Begins what is sealed.
MARK = b"assay:sealed:1:"

#: Begins what is plain and itself begins with one of the two: a hostile text cannot pass for a sealed one.
_PLAIN = b"assay:plain:1:"


class Sealing:
    """Seals and opens with these keys: the first seals, every one opens. Without keys all is stored in plain.

    Args:
        keys: Fernet keys, 32 bytes in URL-safe base64.

    Raises:
        SettingsError: one of them is not a key.
        MissingExtraError: `cryptography` is not installed.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._first: Fernet | None = None
        self._any: MultiFernet | None = None
        if not keys:
            return
        try:
            from cryptography.fernet import Fernet, MultiFernet
        except ImportError:
            raise MissingExtraError("encryption", "cryptography") from None
        ciphers = []
        for place, key in enumerate(keys, 1):
            try:
                ciphers.append(Fernet(key))
            except ValueError:
                raise SettingsError(
                    f"ASSAY_PAYLOAD_KEYS: key {place} of {len(keys)} is not 32 bytes in URL-safe base64: "
                    "make one with `assay db new-key`"
                ) from None
        self._first, self._any = ciphers[0], MultiFernet(ciphers)

    @property
    def on(self) -> bool:
        """Whether there is a key to seal with."""
        return self._first is not None

    def seal(self, plain: bytes) -> bytes:
        """What to store."""
        if self._first is not None:
            return MARK + self._first.encrypt(plain)
        return _PLAIN + plain if plain.startswith((MARK, _PLAIN)) else plain

    def open(self, stored: bytes) -> bytes:
        """What was stored.

        Raises:
            StoreError: no key opens it; it stays as it is.
        """
        if stored.startswith(_PLAIN):
            return stored[len(_PLAIN) :]
        if not stored.startswith(MARK):
            return stored
        if self._any is None:
            raise StoreError(
                "texts in the database are encrypted: set ASSAY_PAYLOAD_KEYS to the keys they were stored with"
            )
        from cryptography.fernet import InvalidToken

        try:
            return self._any.decrypt(stored[len(MARK) :])
        except InvalidToken:
            raise StoreError(
                "no key of ASSAY_PAYLOAD_KEYS opens a stored text: add the key it was stored with behind the others"
            ) from None

    def is_current(self, stored: bytes) -> bool:
        """Whether it is sealed with the first key."""
        if self._first is None or not stored.startswith(MARK):
            return False
        from cryptography.fernet import InvalidToken

        try:
            self._first.decrypt(stored[len(MARK) :])
        except InvalidToken:
            return False
        return True


_OFF = Sealing()

#: A column's type knows only the dialect, and each engine has one of its own.
_sealings: WeakKeyDictionary[sa.Dialect, Sealing] = WeakKeyDictionary()


def seal_engine(engine: sa.Engine, sealing: Sealing) -> None:
    """Let the sealed columns of this engine's database be sealed and opened with these keys."""
    _sealings[engine.dialect] = sealing


def sealing_of(dialect: sa.Dialect) -> Sealing:
    """What an engine's sealed columns are sealed and opened with."""
    return _sealings.get(dialect, _OFF)


def new_key() -> str:
    """A fresh key for `ASSAY_PAYLOAD_KEYS`.

    Raises:
        MissingExtraError: `cryptography` is not installed.
    """
    try:
        from cryptography.fernet import Fernet
    except ImportError:
        raise MissingExtraError("encryption", "cryptography") from None
    return Fernet.generate_key().decode()


class SealedText(sa.types.TypeDecorator[str]):
    """A text that is sealed at rest, where there are keys."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Sealed."""
        return None if value is None else sealing_of(dialect).seal(value.encode()).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Opened."""
        return None if value is None else sealing_of(dialect).open(value.encode()).decode()


class SealedBytes(sa.types.TypeDecorator[bytes]):
    """Bytes that are sealed at rest, where there are keys."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: sa.Dialect) -> bytes | None:
        """Sealed."""
        return None if value is None else sealing_of(dialect).seal(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> bytes | None:
        """Opened."""
        return None if value is None else sealing_of(dialect).open(bytes(value))


class SealedJson(sa.types.TypeDecorator[Any]):
    """A JSON object that is sealed at rest, where there are keys: then the column holds one JSON string."""

    impl = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Sealed."""
        sealing = sealing_of(dialect)
        if value is None or not sealing.on:
            return value
        from assay.store._tables import dumps

        return sealing.seal(dumps(value).encode()).decode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Opened. Only what is sealed is a string."""
        return json.loads(sealing_of(dialect).open(value.encode())) if isinstance(value, str) else value


_Sealed = (SealedText, SealedBytes, SealedJson)


def sealed_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """The columns of a table that are sealed."""
    return [column for column in table.c if isinstance(column.type, _Sealed)]


def stored_value(column: sa.ColumnElement[Any], value: Any, dialect: sa.Dialect) -> Any:
    """What a column holds for a value, for rows that go to the database as one JSON text."""
    kind = column.type
    return cast("Any", kind).process_bind_param(value, dialect) if isinstance(kind, _Sealed) else value
