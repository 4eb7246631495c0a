"""When an evolved instruction or its answer is thrown away: Evol-Instruct's rules, as pure functions.

After WizardLM (arXiv 2304.12244), section on elimination evolving; rule 1 needs a model's
reply, the others only the texts.
"""

from __future__ import annotations

import re
from itertools import pairwise

from openbezoar.cleaning import units
from openbezoar.schemes.work import normal

SHORT = 80  # words; an apology in a shorter answer is a refusal

PROMPT_WORDS = (
    "#given prompt#",
    "#created prompt#",
    "#rewritten prompt#",
    "given prompt",
    "created prompt",
    "rewritten prompt",
)

# Function words of English: articles, pronouns, prepositions, conjunctions, auxiliaries and the like.
_FUNCTION_WORDS = """
    a about above after again against all am an and any are aren't as at be because been before being below between
    both but by can can't could couldn't did didn't do does doesn't doing don't down during each few for from
    further had hadn't has hasn't have haven't having he he'd he'll he's her here hers herself him himself his how i
    i'd i'll i'm i've if in into is isn't it it's its itself just let's me might mightn't more most must mustn't my
    myself needn't no nor not now of off on once only or other our ours ourselves out over own same shall shan't she
    she'd she'll she's should shouldn't so some such than that that'll that's the their theirs them themselves then
    there there's these they they'd they'll they're they've this those through to too under until up very was wasn't
    we we'd we'll we're we've were weren't what what's when where which while who who's whom why will with won't
    would wouldn't you you'd you'll you're you've your yours yourself yourselves
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_WORD = re.compile(rf"{units.BARE}(?:'{units.BARE})*")


def words(text: str) -> list[str]:
    """The words of a text, lower-case, punctuation left out."""
    return units.apart(_WORD.findall(text.lower().replace("’", "'")))


def same_as_source(source: str, evolved: str) -> bool:
    """Nothing changed but case, white space and the mark at the end."""
    return normal(source) == normal(evolved)


def apologises(answer: str) -> bool:
    """Rule 2: 'sorry' in an answer of fewer than 80 words."""
    return "sorry" in answer.lower() and units.size(words(answer)) < SHORT * units.WORD


def says_nothing(answer: str) -> bool:
    """Rule 3: only stop words and punctuation, or nothing at all."""
    return all(word in STOP_WORDS for word in words(answer))


def leaks_prompt(evolved: str) -> bool:
    """Rule 4: words of the evolving prompt in its result, in any case and with any white space between them."""
    text = " ".join(evolved.lower().split())
    return any(phrase in text for phrase in PROMPT_WORDS)


def gains_information(reply: str) -> bool | None:
    """Rule 1, from what follows "The two prompts are": True if not equal, False if equal, None if it says neither."""
    reply_words = words(reply)
    if ("not", "equal") in pairwise(reply_words):
        return True
    return False if "equal" in reply_words else None
