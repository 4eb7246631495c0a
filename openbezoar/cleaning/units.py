"""What a text's length, its repeats and its likeness to others are counted in: words, and letters
of scripts that set no spaces. Pure functions.

English and every other spaced script is cut into words as ever. A text in Han, kana, Thai, Lao,
Khmer, Myanmar, Tibetan and the like has no spaces to be cut at, so there each letter, with the
marks on it, is a unit of its own, and counts as part of a word: ``SIXTHS`` says how much, by the
mean length of words in running text (Chinese 1.5 characters, kana 2, the South-East Asian
scripts 4 to 5 code points, of which a third are marks). N-grams begin at every unit and end where
n words are full, so a run of words is the same n-gram whatever stands around it. Punctuation
between such letters is no unit; a pictogram is a word. All take time linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

WORD = 6  # sixths of a word that a word is
# with Yi's syllables
_HAN = "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # with Bopomofo
_OTHER = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
    # Tai, Balinese, Javanese
    "\u1950-\u197f\u1980-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df\ua9e0-\ua9ff\uaa60-\uaa7f\uaa80-\uaadf"
)
# emoji, flags' letters and dingbats, each a word by itself
_PICTURES = "\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff"
SIXTHS = {_HAN: 4, _KANA: 3, _OTHER: 2, _PICTURES: WORD}
_SIXTHS = [(re.compile(f"[{letters}]"), part) for letters, part in SIXTHS.items()]
_UNSPACED = re.compile(f"[{_HAN}{_KANA}{_OTHER}{_PICTURES}]")
# Marks that belong to a word but are no letters to Python's \w: the vowel signs of India's scripts,
# Arabic and Hebrew points.
_MARKS = (
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u0900-\u0903\u093a-\u094f\u0951-\u0963\u0980-\u0dff"
)
BARE = rf"(?:[^\W_]++|[{_MARKS}{_HAN}{_KANA}{_OTHER}{_PICTURES}]++)+"
"""A word without punctuation, as a regular expression."""
_BARE = re.compile(BARE)
_WIDTH = re.compile("[\uff01-\uffee]+")
_BLANK = re.compile(f"(?<=[{_HAN}{_KANA}{_OTHER}]) (?=[{_HAN}{_KANA}{_OTHER}])")


def split(text: str) -> list[str]:
    """The units of a text cut at white space, punctuation left on words."""
    return apart(text.split())


def folded(text: str) -> str:
    """A text in small letters of the usual width: full-width Latin and half-width kana are other
    codes for the same letters.
    """
    return _WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text).casefold()


def bare(text: str) -> list[str]:
    """The units of a text in small letters of one width, punctuation left out."""
    return apart(_BARE.findall(folded(text)))


def apart(pieces: Iterable[str]) -> list[str]:
    """Pieces of a text as units: those of spaced scripts as they are, others taken apart."""
    units: list[str] = []
    for piece in pieces:
        if piece.isascii() or not _UNSPACED.search(piece):
            units.append(piece)
        else:
            units += _letters(piece)
    return units


def _letters(piece: str) -> list[str]:
    """Each letter of an unspaced script with its marks, and what stands between them where it has a letter or digit."""
    units: list[str] = []
    begin = end = 0  # of what stands between
    for place, char in enumerate(piece):
        if not _UNSPACED.match(char):
            end = place + 1
            continue
        if begin < end and any(c.isalnum() for c in piece[begin:end]):
            units.append(piece[begin:end])
        begin = end = place + 1
        kind = unicodedata.category(char)
        if (kind[0] == "M" or kind == "Sk") and units:  # a mark, or the colour of a skin
            units[-1] += char
        elif kind[0] in "LN" or kind == "So":
            units.append(char)
    if begin < end and any(c.isalnum() for c in piece[begin:end]):
        units.append(piece[begin:end])
    return units


def joined(text: str) -> str:
    """Units with blanks between them as text: without the blanks where the script has none."""
    return _BLANK.sub("", text)


def sixths(unit: str) -> int:
    """How much of a word a unit is, in sixths."""
    if unit.isascii():
        return WORD
    return next((part for letters, part in _SIXTHS if letters.match(unit)), WORD)


def size(units: Iterable[str]) -> int:
    """How long units are together, in sixths of a word."""
    return sum(map(sixths, units))


def words(text: str) -> int:
    """How many words a text has, as they are cut at white space or as long as words are; a part of one counts whole."""
    return -(-size(split(text)) // WORD)


def grams(units: Sequence[str], length: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each shortest run of units that is ``length`` sixths of a word long or longer."""
    parts = list(map(sixths, units))
    end = have = 0
    for begin, part in enumerate(parts):
        while have < length and end < len(parts):
            have += parts[end]
            end += 1
        if have < length:
            return
        yield begin, end
        have -= part
