"""Whether a text is English, by its script and its little words. Reads and writes nothing.

A language model of its own would be a dependency of many megabytes for one question. Two
things are looked at: the share of letters that are not Latin, and whether more function words
of another European language stand in the text than English ones. Code, lists, names and
numbers have neither, and pass; a text is called foreign only on evidence that it is.
"""

from __future__ import annotations

import re

OTHER_SCRIPT = 0.5  # of the letters
FEWEST_LETTERS = 5  # fewer may be a formula
SHARE = 0.1  # of the words are function words of one other language
FEWEST = 3  # of them at least: "déjà vu" is English

# Words that are frequent in one language and are no English words; a word may serve several.
_FOREIGN = {
    language: frozenset(words.split())
    for language, words in {
        "German": (
            "der das und ist nicht ein eine einen den dem zu mit von für auf sich auch wird sind wie ich sie es werden"
            " oder bei aus nach"
        ),
        "French": (
            "le la les des du une est et dans pour que qui sur avec ce cette il elle nous vous ne pas sont par aux ou"
            " plus leur"
        ),
        "Spanish": (
            "el la los las una es y en que por para con del se su como más lo al pero son este esta fue también muy"
        ),
        "Italian": "il lo gli una è che di per con del della dei nel sono si come più anche questo questa alla ed le",
        "Portuguese": "os uma é e em que por para com do da dos das não se um como mais ao na nos são também pelo foi",
        "Dutch": "het een van en is dat te voor met niet zijn op aan ook als er maar om bij wordt naar deze dit",
        "Swedish": "och att det en som är av för på med den till inte om har ett var jag från kan eller också",
        "Polish": "i w na z się nie że do jest to jak dla przez od po są oraz ale który jego",
        "Indonesian": "yang dan di dari untuk dengan ini itu adalah pada tidak dalam ke akan atau saya bisa oleh",
        "Turkish": "ve bir bu için ile da de çok olarak daha gibi ne kadar olan değil var mi",
        "Romanian": "și în de la cu pe este o un nu că din care să pentru mai sunt se ce sau",
        "Vietnamese": "và của là có không được cho một các trong người này với để những đã tôi",
    }.items()
}
_ENGLISH_WORDS = """
    the of and to in a is that it for on with as was be by are this from at or an have not which you his but they
    their has were can had one all will there what if we she he would your my when who been than its into them some
    could other do then these about use how our out i any no so
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_NAMES = re.compile(
    r"\b(?:translat\w*|language|afrikaans|albanian|arabic|armenian|bengali|bulgarian|catalan|chinese"
    r"|croatian|czech|danish|dutch|esperanto|estonian|finnish|french|german|greek|gujarati|hebrew|hindi"
    r"|hungarian|icelandic|indonesian|irish|italian|japanese|kannada|korean|latin|latvian|lithuanian"
    r"|malay\w*|mandarin|marathi|nepali|norwegian|persian|polish|portuguese|punjabi|romanian|russian"
    r"|sanskrit|serbian|slovak|slovenian|somali|spanish|swahili|swedish|tagalog|tamil|telugu|thai|turkish"
    r"|ukrainian|urdu|vietnamese|welsh|yoruba)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")


def foreign(text: str) -> bool:
    """Whether a text is plainly in another language than English."""
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if letters >= FEWEST_LETTERS and sum(not _latin(c) for word in words for c in word) / letters > OTHER_SCRIPT:
        return True
    english = sum(word.casefold() in _ENGLISH for word in words)
    # Other languages' words as they are, in small letters: Los Angeles and La Paz are names.
    most = max(sum(word in known for word in words) for known in _FOREIGN.values())
    return most >= FEWEST and most > english and most >= SHARE * len(words)


def names_a_language(text: str) -> bool:
    """Whether a text speaks of a language, so that an answer in another one may be what it asks for."""
    return _NAMES.search(text) is not None


def _latin(c: str) -> bool:
    """Latin letters with all their accents; the styled letters of mathematics are none."""
    return c < "\u0250" or "\u1e00" <= c <= "\u1eff"
