"""Plain wordings for reading free answers: contractions, words of the same meaning, and endings are made one.

`plain` turns "Nope, there isn't any dog in the image" into "no , there is no dog here": lower case, only words, commas and colons, one
wording for each meaning (`SAME`), a comma where a clause ends, and ", but" where one is set against the clause before.
"""

from __future__ import annotations

import re
from functools import lru_cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PICTURE = r"(?:image|picture|photo|photograph|scene)s?"
WHO = r"(?:there|it|i|they|we|he|she|this|that|you|one)"
BE = r"(?:is|are|was|were|be|been|seems?|appears?|exists?|do|does|did|has|have|can|could|would|will)"
SEE = (
    r"(?:see|find|spot|notice|observe|detect|locate|perceive|discern|identify|recogni[sz]e|distinguish|make out|saw|seen|found|spotted"
    r"|noticed|observed|detected|located|perceived|discerned|identified|recogni[sz]ed|made out)"
)
SHOW = r"(?:(?:contain|show|include|depict|feature|display|present|portray|have)(?:s|ed|ing)?|has)"
VISIBLE = r"(?:visible|present|shown|depicted|pictured|displayed|featured|included)"
HERE = rf"(?:here|there|among|exists?|appears?|{VISIBLE})"

NEGATION = _set("no not never without")
AFFIRMING = _set(
    "absolutely definitely certainly surely sure indeed exactly precisely obviously clearly evidently apparently probably likely true "
    "undoubtedly unquestionably presumably naturally totally positively correct right almost very quite highly"
)
ARTICLE = _set("a an the any some his her their its")
PREPOSITION = _set("in on at with near behind under over by from next beside between above below around inside for into onto wearing")
FUNCTION = ARTICLE | AFFIRMING | NEGATION | _set(
    "i we you they it he she this that these those them here there and or of such as so to like is are was were be been being am seem "
    "seems appear appears exist exists do does did has have had can could will would able also even only single anywhere actually really "
    "think believe say said claim know aware resemble resembling look looks image picture photo photograph scene object objects thing "
    "things question answer one two three four five six seven eight nine ten several many few couple lot lots plenty"
)  # fmt: skip
IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot"}

REPEATED = re.compile(r"\b((?:\w+ ){0,3}\w+)(?: \1\b)+")  # "no no no"
SAME = [  # (wordings, what is read instead), in this order
    (r"(is|are|was|were|do|does|did|has|have|had|could|would|should)n'?t", r"\1 not"),
    (r"can'?t|cannot|can not not", "can not"),
    (r"won'?t", "will not"),
    (r"ain'?t", "is not"),
    (r"(it|he|she|this|here|that|there)'s|(that|there)s", r"\1\2 is"),
    (r"i'?m", "i am"),
    (r"(\w+)'re", r"\1 are"),
    (r"(\w+)'d", r"\1 would"),
    (r"(\w+)'(?:ve|ll)", r"\1"),
    (rf"^(?:{BE} {WHO}|(?:is|are) (?:the|an?|any))\b[^,:]*[,:]", ""),  # a repeated question: "is there a dog: yes"
    # words
    (r"yes no(?= :)|(?:neither )?yes n?or no|whether or not", "whether"),
    (r"(?:yes+|yeah|yep|yup|yea|aye|affirmative)", "yes ,"),
    (rf"(?:nope|nah|nay|negative|noo+)|no(?= (?:{WHO}|because|since|yes|sir|no|not|thanks|please|as)\b)(?! one\b)", "no ,"),
    (r"(?:^|(?:answer|it) (?:is )?)(yes|no) :", r"\1 ,"),
    (r", (?:in fact|indeed|actually|clearly|unfortunately|sadly|however) ,", ""),
    (r"false|untrue", "not true"),
    (r"incorrect|wrong|mistaken", "not correct"),
    (r"(?<!the )(?<!to )right(?=$| ,)", "correct"),
    (r"(?:there (?:is|can be|could be) )?(?:no|no reason to|(?:without|beyond)(?: an?y?)?) (?:doubt|question)(?: that)?", "definitely"),
    (r"of course|for sure|sure thing|by all means|you bet|very much so|most likely", "definitely"),
    (r"(think|believe|guess|suppose|say|afraid|seems?|appears?|looks?|is|is not) (?:so|like it|that way|the case)", r"\1 true"),
    (r"hardly|scarcely|far from it|not by any means|(?:(?:in|by|under) )?no (?:way|means|circumstances|chance)(?! to\b| of\b)", "not"),
    (r"not (?:in the least|really|exactly|quite|actually)", "not"),
    # negations
    (r"not (?:only|just|merely|one but|the only)|nothing but|none other than|no (?:less|fewer|more) than|can not deny|no denying", ""),
    (r"unlikely", "not likely"),
    (r"absent|missing", "not present"),
    (r"invisible", "not visible"),
    (r"nowhere(?: to be (?:seen|found))?", "not here"),
    (r"(?:an? |the )?(?:absence|lack) of|lack(?:s|ing)?|devoid of|free of|with (?:no|not any)(?= \w)", "without"),
    (r"neither(?=.* nor )|not a single|not any|zero|0(?= [a-z])", "no"),
    (r"(?:none|nothing) (?:of the (?:sort|kind)|like (?:that|it))", "not"),
    (r"none|nothing|nobody", "no one"),
    (r"at all", ""),
    (r"(?<=\w )nor", "or"),
    (r"nor|fail(?:s|ed)? to|i (?:highly |strongly |really )?doubt(?: it)?", "not"),
    (r"(?:(?:am|are|is|was|were|be) )?(?:not able|unable) to|can not (?:clearly|really|actually|currently|directly|even)", "can not"),
    # the rest
    (rf"(?:(?:this|it|here) is an? (?:\w+ )?{PICTURE}|(?:sign|trace|hint|indication|evidence|presence)s?) of", ""),
    (rf"(?:anywhere )?(?:in|on|of|within|from|part of) (?:(?:the|this|that|your|given|provided|entire|whole) )+{PICTURE}", "here"),
    (r"in (?:view|sight|it|here|(?:the )?frame)", "here"),
    (r"(?:as far as|from what|based on what|that) i can (?:see|tell)", ""),
    (r"(?:look|search|check|scan|ask)(?:ed|ing|s)?(?: \w+){0,2} (?:for|about|if|whether)\b[^,]*?(?= and | but |,|$)", ""),
    (r"(?<=\w )(?:if|whether)\b[^,:]*", ""),
    (r"(so|thus|hence|therefore|overall|finally|in \w+) ,", r"\1"),
    # where a clause ends, and where it is set against the one before
    (r"^(?:although|though|even though|while) ([^,]*),", r"\1 , but"),
    (r"(?:instead of|rather than|as opposed to)", ", not"),
    (r"(?:but|however|though|although|yet|instead|while|whereas|(?:except|other than|apart from|aside from)(?: for)?)(?: ,)?", ", but"),
    (r"because|since|and(?= (?:no|not|an?|there|it|i|they|the|yes|could|can|did|found)\b)", ","),
    (r"(?:that|which|who)(?= (?:is|are|may|might|could|looks?|seems?|appears?)\b)", ","),
]  # fmt: skip


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    text = re.sub(r"\s-+\s|-+>|[\N{EN DASH}\N{EM DASH}]", " , ", text.lower())
    text = re.sub(r"([,:])", r" \1 ", re.sub(r"[^\w',:]|_|(?<!\w)'|'(?!\w)", " ", text))
    text = REPEATED.sub(r"\1", " ".join(text.split()))
    for wordings, same in SAME:
        text = " ".join(re.sub(rf"(?<!\w)(?:{wordings})(?!\w)", same, text).split())
    return " ".join(text.replace(":", " is ").split())


def is_function(word: str) -> bool:
    """Whether a word names nothing: "the", "is", "see", "visible"."""
    return word in FUNCTION or re.fullmatch(f"{SEE}|{SHOW}|{HERE}", word) is not None


def stem(word: str) -> str:
    """Without the endings of plurals and verbs; not always a word ("horse" and "horses" are "hors")."""
    word = IRREGULAR.get(word, re.sub(r"(?<=kni|lea|loa|wol|hal|cal)ves$|(?<=shel|scar)ves$", "f", word))
    word = re.sub(r"(?<=\w\w)(?:(?<=ss|ch|sh|zz|us)es|(?<=x)es|(?<![su])s)$", "", word)
    return re.sub(r"(?<=\w\w)(?:ie|[ey])$", "", re.sub(r"(?<=\w\w\w)(?:ing|ed)$", "", word))
