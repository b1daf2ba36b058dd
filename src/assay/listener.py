"""What stands before every HTTP endpoint of assay: who may connect, how often, over what, and with which token.

The exporter, a worker's metrics and the receiver of traces listen with different servers; what they let in is decided
here alone. By default each listens on loopback, in the clear, and asks for nothing.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from assay.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

#: What the `Server` header says: never a version.
SERVER_NAME: Final = "assay"
#: Connections of one address that a listener keeps at once, and of all addresses.
PEER_CONNECTIONS: Final = 100
CONNECTIONS: Final = 1_000
#: How often the files of a certificate are looked at.
_LOOK_SECONDS: Final = 1.0


class Certificate:
    """A certificate and its key in PEM files. They are read again when they change: no restart, no lost connection.

    Raises:
        SettingsError: they cannot be read, or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._context = self._load()
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, with the newest certificate that could be read."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_SECONDS
                stamp = self._read_stamp()
                if stamp != self._stamp:
                    try:
                        self._context = self._load()
                        self._stamp = stamp
                        _log.info("the certificate was read again")
                    except SettingsError as error:
                        # Half of a pair is there for a moment: the next look may find both.
                        _log.warning("%s; the one before stays in use", error)
            return self._context

    def _read_stamp(self) -> tuple[tuple[int, int] | None, ...]:
        def stamp(path: Path) -> tuple[int, int] | None:
            with contextlib.suppress(OSError):
                found = path.stat()
                return found.st_mtime_ns, found.st_ino
            return None

        return tuple(stamp(path) for path in self._files)

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without the empty password a key that is locked would ask at the terminal.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            reason = (error.reason or "they are no PEM files").replace("_", " ").lower()
            raise SettingsError(
                f"ASSAY_TLS_CERTIFICATE and ASSAY_TLS_KEY: {certificate} and {key}: {reason}: "
                "name the certificate chain and its unlocked key, both as PEM"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "cannot be read"
            raise SettingsError(f"ASSAY_TLS_CERTIFICATE and ASSAY_TLS_KEY: {certificate}, {key}: {reason}") from None
        return context


class Peers:
    """Counts open connections by address: one peer cannot use up what all share. Thread-safe."""

    def __init__(self, *, each: int = PEER_CONNECTIONS, most: int = CONNECTIONS) -> None:
        self._each, self._most = each, most
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        #: connections that were turned away, by `peer` or `all`
        self.refused: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether one more may come from there; if so it is counted until `leave`."""
        with self._lock:
            if self._open[address] >= self._each:
                self.refused["peer"] += 1
            elif self._open.total() >= self._most:
                self.refused["all"] += 1
            else:
                self._open[address] += 1
                return True
            if not self._open[address]:
                del self._open[address]
            return False

    def leave(self, address: str) -> None:
        """A connection from there is closed."""
        with self._lock:
            self._open[address] -= 1
            if self._open[address] <= 0:
                del self._open[address]

    def __len__(self) -> int:
        with self._lock:
            return self._open.total()


@dataclass(frozen=True)
class Guard:
    """What a listener asks of those who connect.

    Args:
        tokens: bearer tokens, any of which is right; none: nobody is asked. Several, while one replaces another.
        certificate: speaks TLS with it; None: in the clear.
        peer_connections: most connections of one address at once.
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    certificate: Certificate | None = None
    peer_connections: int = PEER_CONNECTIONS

    def admits(self, authorization: str | None) -> bool:
        """Whether the value of an Authorization header is right. Takes as long for a wrong token as for a right one."""
        if not self.tokens:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        shown = given.strip().encode(errors="replace")
        right = False
        for token in self.tokens:
            right |= hmac.compare_digest(shown, token.encode())
        return right and scheme.lower() == "bearer"

    def peers(self) -> Peers:
        """A new count of connections, for one listener."""
        return Peers(each=self.peer_connections)

    def exposure(self, host: str, setting: str) -> str | None:
        """One line when other machines reach an address and no token keeps them out; `setting` would.

        Also when a token is asked for but crosses the network in the clear.
        """
        if is_loopback(host):
            return None
        if not self.tokens:
            return f"whoever reaches {host} is answered: set {setting}, or listen on 127.0.0.1"
        if self.certificate is None:
            return (
                f"the token crosses the network to {host} in the clear: "
                "set ASSAY_TLS_CERTIFICATE and ASSAY_TLS_KEY, or put a proxy that speaks TLS before it"
            )
        return None

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.certificate is None else "https"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def split_tokens(text: str) -> tuple[str, ...]:
    """The tokens of a setting: one, or some separated by commas. A token out of a file often ends in a newline."""
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)
