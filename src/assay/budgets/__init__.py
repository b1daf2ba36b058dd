"""Budgets: how much judging may take in an hour, a day or a month, in US dollars and in tokens.

Before each request to a judge the most that it can take is reserved in Redis, in one script for all budgets that cover
it; afterwards what it took is settled. What is spent and what is reserved are never more than the limit together, in
however many processes. docs/decisions/0010-budgets.md has the reasons.

Under `assay:Q:budget:`, Q being the name of the queue:

    NAME:PER:UNIT   hash        window (its start, epoch seconds), spent, reserved: whole nano-dollars, or tokens
    reservations    hash        id -> what is held of which budgets, as JSON
    leases          sorted set  id -> when a reservation lapses: it then counts as spent in full, until it is settled

The clock is the server's. Windows are hours, days and months in UTC; a request counts in the one that it began in.
"""

from assay.budgets._file import check_budgets_file, load_budgets
from assay.budgets._limits import FREE_JUDGES, THINNED, TOTAL, Budget, Budgets, Meter, is_thinned, thinning
from assay.budgets._local import LocalPurse
from assay.budgets._purse import Purse, Reservation
from assay.budgets._redis import Balance, Ledger, RedisPurse

__all__ = [
    "FREE_JUDGES",
    "THINNED",
    "TOTAL",
    "Balance",
    "Budget",
    "Budgets",
    "Ledger",
    "LocalPurse",
    "Meter",
    "Purse",
    "RedisPurse",
    "Reservation",
    "check_budgets_file",
    "is_thinned",
    "load_budgets",
    "thinning",
]
