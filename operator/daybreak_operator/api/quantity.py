"""Amounts of resources as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

_UNITS = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
}


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity; one that is none counts as more than any node has."""
    raw = str(text)
    for unit in sorted(_UNITS, key=len, reverse=True):
        if raw.endswith(unit):
            raw, factor = raw[: -len(unit)], _UNITS[unit]
            break
    else:
        factor = Decimal(1)
    try:
        return Decimal(raw) * factor
    except ArithmeticError:
        return Decimal("Infinity")
