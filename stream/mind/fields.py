"""Two fields of a line, byte by byte: well-formed UTF-8, and MIND's times."""

import numpy as np
from numba import njit

_SPACE, _SLASH, _COLON, _ZERO = 32, 47, 58, 48
NO_TIME = -1
# Years outside these are a clock that was never set, or seconds taken for something else; as `wire.min_time_ms` and
# `wire.max_time_ms` have it for other producers.
FIRST_YEAR, LAST_YEAR = 1974, 5137


@njit(cache=True, nogil=True)
def is_utf8(data, lo, hi):  # type: ignore[no-untyped-def]
    """Well-formed UTF-8 by table 3-7 of the Unicode standard: no overlong forms, no surrogates."""
    i = lo
    while i < hi:
        b = data[i]
        i += 1
        if b < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= b <= 0xDF:
            more = 1
        elif 0xE0 <= b <= 0xEF:
            more = 2
            low = 0xA0 if b == 0xE0 else 0x80
            high = 0x9F if b == 0xED else 0xBF
        elif 0xF0 <= b <= 0xF4:
            more = 3
            low = 0x90 if b == 0xF0 else 0x80
            high = 0x8F if b == 0xF4 else 0xBF
        else:
            return False
        for _ in range(more):
            if i >= hi or data[i] < low or data[i] > high:
                return False
            low, high = 0x80, 0xBF
            i += 1
    return True


@njit(cache=True, nogil=True)
def _number(data, at, hi, least, most):  # type: ignore[no-untyped-def]
    """(value, end) of `least` to `most` digits at `at`; value −1 where there are none."""
    value = np.int64(0)
    width = 0
    while at < hi and width < most and _ZERO <= data[at] <= 57:
        value = value * 10 + np.int64(data[at]) - np.int64(_ZERO)
        at += 1
        width += 1
    return (value if width >= least else -1), at


@njit(cache=True, nogil=True)
def days_from_civil(year, month, day):  # type: ignore[no-untyped-def]
    """Days since 1970-01-01 in the proleptic Gregorian calendar (H. Hinnant's algorithm)."""
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@njit(cache=True, nogil=True)
def parse_time(data, lo, hi):  # type: ignore[no-untyped-def]
    """Milliseconds since the epoch of `11/12/2019 2:14:46 PM` read as UTC; NO_TIME where it is no such time.

    No time lies outside FIRST_YEAR to LAST_YEAR. 12 AM is midnight, 12 PM noon. Month, day and hour may be padded to
    two digits.
    """
    month, at = _number(data, lo, hi, 1, 2)
    if month < 1 or month > 12 or at >= hi or data[at] != _SLASH:
        return NO_TIME
    day, at = _number(data, at + 1, hi, 1, 2)
    if day < 1 or at >= hi or data[at] != _SLASH:
        return NO_TIME
    year, at = _number(data, at + 1, hi, 4, 4)
    if year < FIRST_YEAR or year > LAST_YEAR or at >= hi or data[at] != _SPACE:
        return NO_TIME
    first = days_from_civil(year, month, 1)
    after = days_from_civil(year, month + 1, 1) if month < 12 else days_from_civil(year + 1, 1, 1)
    if day > after - first:
        return NO_TIME
    hour, at = _number(data, at + 1, hi, 1, 2)
    if hour < 1 or hour > 12 or at >= hi or data[at] != _COLON:
        return NO_TIME
    minute, at = _number(data, at + 1, hi, 2, 2)
    if minute < 0 or minute > 59 or at >= hi or data[at] != _COLON:
        return NO_TIME
    second, at = _number(data, at + 1, hi, 2, 2)
    if second < 0 or second > 59 or at + 3 != hi or data[at] != _SPACE or data[at + 2] != 77:
        return NO_TIME
    half = data[at + 1]
    if half != 65 and half != 80:  # A, P
        return NO_TIME
    hour = hour % 12 + (12 if half == 80 else 0)
    return (((first + day - 1) * 24 + hour) * 60 + minute) * 60_000 + second * 1000
