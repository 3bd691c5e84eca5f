"""Figures for people: units, three or four significant digits, never a flattering rounding.

Every function takes what a report may hold, NaN and infinity included, and returns plain text.
"""

from __future__ import annotations

import math

NONE = "\N{EN DASH}"
"""Stands where there is no number."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

CORRELATION = "spearman"
"""The one metric of quality that is no share."""

BINARY_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def is_number(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def figure(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits: `0.9631`, `1.2e-7`, `12,345`."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def cosine(value: float | None) -> str:
    """A cosine with six decimals, rounded down; closer to 1 than that as `1 - 3e-13`."""
    if value is None or not math.isfinite(value) or value == 1:
        return figure(value)
    if abs(value) > 1:  # no cosine, or one with a rounding error: show what it is
        return figure(value, 10)
    if 0 < 1 - value < 1e-6:
        return f"1 {MINUS} {figure(1 - value, 2)}"
    return f"{math.floor(value * 1e6) / 1e6:.6f}"


def metric(name: str, value: float | None) -> str:
    """A number of the metric `name`, such as `cosine_similarity`, in the form that suits it."""
    if "cosine" in name:
        return cosine(value)
    if name.endswith("_db"):
        return decibels(value)
    if name.endswith("_bytes"):
        return size(value)
    return figure(value, 6)


def judged(name: str, value: float | None, *, holds: bool) -> str:
    """A number beside its limit; more digits when it fails, so that 0.9899999 is not `0.99`."""
    return metric(name, value) if holds else figure(value, 9)


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def decibels(value: float | None) -> str:
    """`61.3 dB`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return f"{value:.1f} dB"


def size(size_bytes: float | None) -> str:
    """Bytes in binary units: `86.9 MiB`."""
    if size_bytes is None or not math.isfinite(size_bytes):
        return figure(size_bytes)
    amount, unit = float(size_bytes), 0
    while abs(amount) >= 1024 and unit < len(BINARY_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.{_decimals(amount) if unit else 0}f} {BINARY_UNITS[unit]}"


def mebibytes(value: float | None) -> str:
    """A memory figure given in MiB: `1,005 MiB`, `3.21 GiB`."""
    return size(None if value is None else value * 1024 * 1024)


def milliseconds(value: float | None) -> str:
    """`0.412 ms`, `17.3 ms`, `1.24 s`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    if abs(value) >= 1000:
        return seconds(value / 1000)
    return f"{value:.{_decimals(value)}f} ms"


def seconds(value: float | None) -> str:
    """`0.31 s`, `12.3 s`, `3 min 05 s`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.{2 if value < 10 else 1}f} s"


def ratio(value: float | None) -> str:
    """A speed-up: `1.42x`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return f"{value:.{_decimals(value)}f}{TIMES}"


def percent(share: float | None) -> str:
    """A share of one as a percentage: `1.8 %`."""
    if share is None or not math.isfinite(share):
        return figure(share)
    return f"{share * 100:.3g} %"


def share(value: float | None) -> str:
    """What is taken of a limit: `12.5 %`; beyond it how many times: `13,900x`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return percent(value) if value < 2 else f"{value:,.{_decimals(value)}f}{TIMES}"


def score(share: float | None) -> str:
    """A share of right answers as a percentage, rounded down: `99.94 %`, never a flattering 100."""
    if share is None or not math.isfinite(share):
        return figure(share)
    # 0.29 * 1e4 is 2899.9999999999995 in float64; what lies that close is the whole number.
    return f"{math.floor(share * 1e4 + 1e-7) / 100:.2f} %"


def drop(value: float | None) -> str:
    """What a score lost, in percentage points: `0.50 points`; below zero it gained."""
    if value is None or not math.isfinite(value):
        return figure(value)
    # Rounded up, so that a loss is never shown as none.
    hundredths = math.ceil(value * 1e4 - 1e-7)
    return f"{MINUS if hundredths < 0 else ''}{abs(hundredths) / 100:.2f} points"


def quality(name: str, value: float | None) -> str:
    """A score of the metric `name`; a correlation is no share, so it stays a number."""
    if name != CORRELATION or value is None or not math.isfinite(value):
        return score(value)
    return f"{math.floor(value * 1e4 + 1e-7) / 1e4:.4f}".replace("-", MINUS)


def lost(name: str, value: float | None) -> str:
    """What a score of the metric `name` lost, in its unit; below zero it gained."""
    if name != CORRELATION or value is None or not math.isfinite(value):
        return drop(value)
    ten_thousandths = math.ceil(value * 1e4 - 1e-7)
    return f"{MINUS if ten_thousandths < 0 else ''}{abs(ten_thousandths) / 1e4:.4f}"


def interval(name: str, low: float | None, high: float | None) -> str:
    """Where a loss of the metric `name` lies: `-0.10 to 0.80 points`; empty when it is not known."""
    if low is None or high is None:
        return ""
    return f"{lost(name, low).removesuffix(' points')} to {lost(name, high)}"


def per_second(value: float | None) -> str:
    """`1,234 /s`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return f"{value:,.{0 if value >= 100 else 1}f} /s"


def times(text: str) -> str:
    """Sizes joined by ` x `, with the sign of multiplication."""
    return text.replace(" x ", f" {TIMES} ")


def limit(text: str) -> str:
    """A limit in words, with the signs of mathematics: `≥ 0.99`."""
    return text.replace(">=", "\N{GREATER-THAN OR EQUAL TO}").replace(
        "<=", "\N{LESS-THAN OR EQUAL TO}"
    )


def plural(count: int, one: str, many: str = "") -> str:
    """`1 gate`, `3 gates`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _decimals(value: float) -> int:
    """Decimals that leave three significant digits."""
    if abs(value) >= 100:
        return 0
    return 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign: `+6e-8`, `-1e-9`, `0`."""
    if value is None or not math.isfinite(value) or value == 0:
        return figure(value, digits)
    return f"{'+' if value > 0 else MINUS}{figure(abs(value), digits)}"
