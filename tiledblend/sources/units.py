"""Lengths as files name their units: SI prefixes, plurals, symbols."""

from __future__ import annotations

_PREFIXES = {  # (name, symbol): power of ten
    ("quecto", "q"): -30,
    ("ronto", "r"): -27,
    ("yocto", "y"): -24,
    ("zepto", "z"): -21,
    ("atto", "a"): -18,
    ("femto", "f"): -15,
    ("pico", "p"): -12,
    ("nano", "n"): -9,
    ("micro", "u"): -6,
    ("milli", "m"): -3,
    ("centi", "c"): -2,
    ("deci", "d"): -1,
    ("", ""): 0,
    ("deca", "da"): 1,
    ("hecto", "h"): 2,
    ("kilo", "k"): 3,
    ("mega", "M"): 6,
    ("giga", "G"): 9,
    ("tera", "T"): 12,
    ("peta", "P"): 15,
    ("exa", "E"): 18,
    ("zetta", "Z"): 21,
    ("yotta", "Y"): 24,
    ("ronna", "R"): 27,
    ("quetta", "Q"): 30,
}
_OTHERS = {
    "micron": 1.0,
    "angstrom": 1e-4,
    "ångström": 1e-4,
    "inch": 25_400.0,
    "foot": 304_800.0,
    "yard": 914_400.0,
    "mile": 1_609_344_000.0,
    "parsec": 3.085_677_581_491_367_3e22,
    "feet": 304_800.0,
    "inches": 25_400.0,
}
_SYMBOLS = {"Å": 1e-4, "in": 25_400.0, "ft": 304_800.0, "yd": 914_400.0, "mi": 1_609_344_000.0}
# From text: a power of ten made by multiplying is rounded, and a micrometre must be exactly one.
_BY_SYMBOL = _SYMBOLS | {f"{short}m": float(f"1e{power + 6}") for (_, short), power in _PREFIXES.items()}
_BY_NAME = _OTHERS | {
    f"{long}{metre}": float(f"1e{power + 6}") for (long, _), power in _PREFIXES.items() for metre in ("meter", "metre")
}


def micrometres(unit: object) -> float | None:
    """How many micrometres a unit of length is, by its name (also plural, in any case) or symbol; None for others.

    Names are UDUNITS-2's, which OME-NGFF takes its units from, with "metre" beside "meter". Symbols keep their case
    (Mm is a megametre), except where only one reading is a unit.

    >>> micrometres("micrometer"), micrometres("Nanometres"), micrometres("µm"), micrometres("Mm"), micrometres("s")
    (1.0, 0.001, 1.0, 1000000000000.0, None)
    """
    if not isinstance(unit, str):
        return None
    # U+00B5 and U+03BC look alike and stand for the same.
    text = unit.strip().replace("µ", "u").replace("μ", "u")
    if (found := _BY_SYMBOL.get(text)) is not None:
        return found
    name = text.lower()
    for form in (name, name.removesuffix("s")):
        if (found := _BY_NAME.get(form) or _BY_SYMBOL.get(form)) is not None:
            return found
    return None
