"""Licences of training data, their conditions, and the licence for weights that satisfies all these conditions."""

import re
from collections.abc import Sequence

# The Hub's identifiers of licences without conditions, and of licences that require only attribution. The conditions of
# Creative Commons licences are read from their names: attribution, share alike, non-commercial, no derivatives.
_PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "pddl", "unlicense", "cdla-permissive-2.0"}
)
_ATTRIBUTION = frozenset({"odc-by"})
_CREATIVE_COMMONS = re.compile(r"cc-by(?P<nc>-nc)?(?P<sa>-sa)?(?P<nd>-nd)?-\d\.\d")
# The MIT licence without its copyright notice. It must accompany copies of what is licensed.
MIT_LICENCE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated\n"
    'documentation files (the "Software"), to deal in the Software without restriction, including without limitation\n'
    "the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and\n"
    "to permit persons to whom the Software is furnished to do so, subject to the following conditions:\n"
    "\n"
    "The above copyright notice and this permission notice shall be included in all copies or substantial portions of\n"
    "the Software.\n"
    "\n"
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO\n'
    "THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE\n"
    "AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF\n"
    "CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER\n"
    "DEALINGS IN THE SOFTWARE."
)
DEFAULT = "apache-2.0"
OTHER = "other"
_CC_BY, _CC_BY_SA, _CC_BY_NC, _CC_BY_NC_SA = "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"


def hub_licence(name: str) -> str:
    """Return the Hub's identifier of a licence: `cc-by-sa-4.0` for `CC BY-SA 4.0` and `CC-BY-SA-4.0`."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def conditions(licence: str) -> frozenset[str] | None:
    """Return the conditions of a licence, a subset of `by`, `sa`, `nc` and `nd`; None if the licence is unknown."""
    name = hub_licence(licence)
    if name in _PERMISSIVE:
        return frozenset()
    if name in _ATTRIBUTION:
        return frozenset({"by"})
    match = _CREATIVE_COMMONS.fullmatch(name)
    if match is None:
        return None
    return frozenset({"by"} | {key for key, value in match.groupdict().items() if value is not None})


def weights_licence(of_data: Sequence[str]) -> str | None:
    """Return a licence for weights that keeps all conditions of the licences of the training data.

    It is not settled whether weights are a derived work of their training data. This function assumes that they are.

    Args:
        of_data: licences of all training data.

    Returns:
        Identifier of the Hub for the most permissive licence that keeps every condition; `"other"` if a licence is
        unknown, forbids derivatives, or contradicts another; None if `of_data` is empty.
    """
    if not of_data:
        return None
    asked = [conditions(licence) for licence in of_data]
    if any(one is None or "nd" in one for one in asked):
        return OTHER
    known = [one for one in asked if one is not None]
    every: frozenset[str] = frozenset().union(*known)
    # Share alike requires the same licence for derived works. If that licence allows commercial use, it contradicts a
    # non-commercial licence.
    if "nc" in every and any("sa" in one and "nc" not in one for one in known):
        return OTHER
    if "nc" in every:
        return _CC_BY_NC_SA if "sa" in every else _CC_BY_NC
    if "sa" in every:
        return _CC_BY_SA
    return _CC_BY if "by" in every else DEFAULT


_WORDS = {
    "by": "attribution",
    "sa": "the same licence for derived works",
    "nc": "no commercial use",
    "nd": "no derivatives",
}


def dropped_conditions(licence: str, of_data: Sequence[str]) -> list[str]:
    """Return, in words, the conditions of licences `of_data` that `licence` lacks; empty if `licence` is unknown."""
    given = conditions(licence)
    if given is None:
        return []
    asked: set[str] = set()
    for one in of_data:
        found = conditions(one)
        asked |= set() if found is None else found
    return [words for key, words in _WORDS.items() if key in asked - given]
