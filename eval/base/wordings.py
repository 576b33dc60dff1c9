"""Plain wordings for reading free answers: contractions, words of the same meaning, and endings are made one.

`plain` turns "Nope, there isn't any dog in the image" into "no , there is no dog here": lower case, only words, commas and colons, one
wording for each meaning (`SAME`), a comma where a clause ends, and ", but" where one is set against the clause before.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<!\w)(?:{phrase})(?!\w)" for phrase in phrases))


PICTURE = r"(?:image|picture|photo|photograph|scene)s?"
WHO = r"(?:there|it|i|they|we|he|she|this|that|you|one)"
BE = r"(?:is|are|was|were|be|been|seems?|appears?|exists?|do|does|did|has|have|can|could|would|will)"
SEE = (
    r"(?:see|seeing|find|spot|notice|observe|detect|locate|perceive|discern|identify|recogni[sz]e|distinguish|saw|seen|found"
    r"|spotted|noticed|observed|detected|located|perceived|discerned|identified|recogni[sz]ed)"
)
SHOW = r"(?:(?:contain|show|include|depict|feature|display|present|portray|have)(?:s|ed|ing)?|has)"
VISIBLE = r"(?:visible|present|shown|depicted|pictured|displayed|featured|included)"
HERE = rf"(?:here|there|among|exists?|appears?|{VISIBLE})"

VERDICTS = _set("yes no true correct likely")  # end a clause that answers by itself
NEGATION = _set("no not never without")
AFFIRMING = _set(
    "absolutely definitely certainly surely sure indeed exactly precisely obviously clearly evidently apparently probably likely true "
    "undoubtedly unquestionably presumably naturally totally positively correct right almost very quite highly"
)
ARTICLE = _set("a an the any some his her their its")
PRONOUN = _set("it he she they this that these those")
PREPOSITION = _set(
    "in on at with near behind under over by from next beside between above below around inside for into onto wearing other another more"
)
FUNCTION = ARTICLE | AFFIRMING | NEGATION | _set(
    "i we you they it he she this that these those them here there and or of such as so to like is are was were be been being am seem "
    "seems appear appears exist exists do does did has have had can could will would able also even only single anywhere actually "
    "really think believe say said claim know aware my knowledge resemble resembles resembling look looks image picture photo "
    "photograph scene object objects thing things question answer one two three four five six seven eight nine ten several many few "
    "couple lot lots plenty"
)  # fmt: skip
IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot"}

REPEATED = re.compile(r"\b((?:\w+ ){0,8}\w+)(?: \1\b)+")  # models repeat themselves: "no no no"
SAME = [  # (wordings, the one that is read instead), applied in this order
    (r"(is|are|was|were|do|does|did|has|have|had|could|would|should) ?n[' ]?t", r"\1 not"),  # also as tokenisers split it: "is n't"
    (r"can[' ]?t|ca n't|cannot|can not not", "can not"),
    (r"won[' ]?t|wo n't", "will not"),
    (r"ain[' ]?t|ai n't", "is not"),
    (r"(it|he|she|this|here|that|there)'s|(that|there)s", r"\1\2 is"),
    (r"(\w+)'s(?= (?:not|here|there|in|on|visible|present))", r"\1 is"),
    (r"i'?m", "i am"),
    (r"(\w+)'re", r"\1 are"),
    (r"(\w+)'d", r"\1 would"),
    (r"(\w+)'(?:ve|ll)", r"\1"),
    (r"(?:if i am not|unless i am) (?:mistaken|wrong|incorrect)", ""),
    (r"^not only (is|are|was|were|do|does|can|has|have) (there|it|they|he|she|i|we|this|that)", r"\2 \1"),
    (rf"^(?:{BE} {WHO}|(?:is|are) (?:the|an?|any))\b[^,:]*[,:]", ""),  # a repeated question: "is there a dog: yes"
    # words
    (r"yes no(?= :)|(?:neither )?yes n?or no|whether or not", "whether"),
    (r"(?:yes+|yea+h*|yep|yup|aye|affirmative|uh huh|mm+ hmm+)", "yes ,"),
    (r"nuh uh", "no ,"),
    (rf"(?:nope|nah|nay|negative|noo+)|no(?= (?:{WHO}|because|since|yes|sir|no|not|thanks|please|as|just|only)\b)(?! one\b)", "no ,"),
    (r"(yes|no) (?:from|for) me", r"\1"),
    (r"^no(?= (?:an?|the)\b)", "no ,"),
    (r"(?:^|(?:answer|it) (?:is )?)(yes|no) :", r"\1 ,"),
    (r"(answer (?:is|:) (?:yes|no))(?= (?:the |my |final )*answer)", r"\1 ,"),
    (r", (?:in fact|indeed|actually|clearly|unfortunately|sadly|however) ,", ""),
    (r"false|untrue", "not true"),
    (r"incorrect|inaccurate|wrong|mistaken", "not correct"),
    ("accurate", "correct"),
    (r"^((?:not )?(?:true|correct)) :", r"\1 ,"),
    (r"(?:description|caption|statement|sentence|text)( (?:does )?not)? (?:match(?:es)?|fits?|agrees?)$", r"that is\1 true"),
    (r"i (?:strongly |totally )?(?:disagree|(?:do |can |would )?not agree)", "not true"),
    (r"i (?:fully |totally |would )?agree(?: that)?", "definitely"),
    (rf"({WHO})(?: most| very)? (?:\w+ly|indeed|sure|still)(?= {BE})", r"\1"),  # "there certainly is"
    (r"(?<!the )(?<!to )right(?=$| ,)", "correct"),
    (r"(?:there (?:is|can be|could be) )?(?:no|no reason to|(?:without|beyond)(?: an?y?)?) (?:doubt|question)", "definitely"),
    ("(?<=definitely )(?:that|about (?:it|that))", ""),
    (r"of course|for sure|sure thing|by all means|you bet|very much so|most likely|most(?= \w+ly)|positive(?=$| ,)", "definitely"),
    (r"(think|believe|guess|suppose|say|afraid|seems?|appears?|looks?|is|is not) (?:so|like it|that way|the case)", r"\1 true"),
    (r"out of the question|not (?:a|any) chance(?=$| ,)", "not"),
    (r"hardly|scarcely|far from it|not by any means|(?:(?:in|by|under) )?no (?:way|means|circumstances|chance)(?! to\b| of\b)", "not"),
    (r"not (?:in the (?:least|slightest)|really|exactly|quite|actually)", "not"),
    (r"make out|spy", "see"),
    (r"made out|spied", "seen"),
    (r"(has|have)( not)? got", r"\1\2"),
    # negations
    (r"at least(?= (?:an?|one|two|\d+)(?!\w))", ""),
    (r"not (?:only|just|merely|one but|the only)|none other than|no (?:less|fewer|more) than", ""),
    (r"can not deny|no denying|no(?:body| one) (?:would|could|can) deny", ""),
    (r"(?:nothing|nobody|no (?:one|\w+ (?=other)))(?: else)? (?:but|except(?: for)?|other than|apart from|besides)", ""),
    (r"can not (?:miss|overlook)|(?:hard|difficult|impossible) (?:for \w+ )?to (?:miss|overlook)", "see"),
    (r"unlikely|improbable|implausible", "not likely"),
    (r"absent|missing", "not present"),
    (r"invisible", "not visible"),
    (r"nowhere(?: to be (?:seen|found))?", "not here"),
    (r"(?:an? |the )?(?:absence|lack) of|lack(?:s|ing)?|with (?:no|not any)(?= \w)", "without"),
    (r"(?:(?:de)?void|empty|clear) of|free (?:of|from)", "without"),
    (r"(?:omit|exclud|leav(?=\w* out))(?:e?s|t?ed|t?ing|e)?(?: out)?", "without"),
    (rf"(\w+) free(?=$| ,| {PICTURE})", r"without \1"),
    (r"(?<!not )rul(?:e[sd]?|ing) out", "not seen"),
    (r"(?:any|every)thing but(?= an?\b)", "not"),
    (r"(?::|is|are) (?:0|zero)$", "is not here"),  # "cars: 0"
    (r"neither(?=.* nor )|not a single|not any|zero|0(?= [a-z])", "no"),
    (r"(?:none|nothing) (?:of the (?:sort|kind)|like (?:that|it))", "not"),
    (r"none|nothing|nobody(?= \w)", "no one"),
    (r"at all", ""),
    (r"(?<=\w )nor", "or"),
    (r"nor|fail(?:s|ed)? to|i (?:highly |strongly |really )?doubt(?: it)?", "not"),
    (r"(?:(?:am|are|is|was|were|be) )?(?:not able|unable) to|can not (?:clearly|really|actually|currently|directly|even)", "can not"),
    # the rest
    (rf"(?:(?:this|it|here) is an? (?:\w+ )?{PICTURE}|(?:sign|trace|hint|indication|evidence|presence)s?) of", ""),
    (rf"(?:anywhere )?(?:in|on|of|within|from|part of) (?:(?:the|this|that|your|given|provided|entire|whole) )+{PICTURE}", "here"),
    (r"(i|we|you) (?:am|are)( not)? (?:looking at|seeing)", r"\1 do\2 see"),
    (r"in (?:view|sight|it|here|(?:the )?frame)", "here"),
    (r"(?:as far as|from what|based on what|that) i can (?:see|tell)", ""),
    (rf"(?:am|{BE})(?= (?:look|search|check|scan|ask)(?:ed|ing) )", ""),
    (r"(?:look|search|check|scan|ask)(?:ed|ing|s)?(?: \w+){0,2} (?:for|about|if|whether)\b[^,]*?(?= and | but |,|$)", ""),
    (r"(?<=\w )(?:if|whether)\b[^,:]*", ""),
    (r"(so|thus|hence|therefore|overall|finally|in \w+) ,", r"\1"),
    # where a clause ends, and where it is set against the one before
    (r"^(let (?:me|us) [^,:]*) :", r"\1 ,"),
    (r"^(?:although|though|even though|while) ([^,]*),", r"\1 , but"),
    (r"(?:instead of|rather than|as opposed to)", ", not"),
    (r"(?<=, )(?:just|only)(?= \w)", "but"),  # "no cat, just a dog"
    (r"everything but(?! no)|((?:all|every\w*) [^,]*?)(?:except|other than|apart from|aside from)(?: for)?", r"\1 , but not"),
    (r"(?:but|however|though|although|yet|instead|while|whereas|(?:except|other than|apart from|aside from)(?: for)?)(?: ,)?", ", but"),
    (r"because|since|and(?= (?:no|not|an?|there|it|i|they|the|yes|could|can|did|found)\b)", ","),
    (r"(?<=\w )(?:that|which|who)(?= (?:is|are|may|might|could|looks?|seems?|appears?)\b)", ","),
]  # fmt: skip

# Thumbs, check marks and crosses, gestures.
SIGNS = dict.fromkeys("\U0001f44d\u2705\u2713\u2714\u2611\u221a\U0001f4af\U0001f44c\U0001f646", "yes")
SIGNS |= dict.fromkeys("\U0001f44e\u274c\u274e\u2612\u2715\u2716\u2717\u2718\u26d4\U0001f6ab\U0001f645", "no")
SIGN = re.compile(f"[{''.join(SIGNS)}]")
APOSTROPHES = re.compile("[\u2018\u2019\u201a\u201b\u02b9\u02bb-\u02bd\u02c8\u2032\u2035\ua78b\ua78c\u055a\u05f3`\u00b4\x91\x92]")
VARIANTS = re.compile("[\ufe0e\ufe0f\u2640\u2642\U0001f3fb-\U0001f3ff]")  # of a sign: its skin, sex, or colour

FILLER = re.compile(  # before what a clause says
    r"^(?:(?:but|well|so|oh|ok|okay|u[mh]|h+m+|ah|and|or|then|why|honestly|sorry|sadly|unfortunately|fortunately|i am afraid|also|just|only"
    r"|no problem|(?:i|we) (?:would |will )?(?:think|believe|guess|suppose|say|assume|suspect)|it (?:would )?(?:seems?|appears?)"
    r"|(?:i am|it is) (?:\w+ly |very |quite |almost )*(?:sure|certain|confident|positive|clear|obvious))(?: that)?(?: |$))+"
)
DOUBT = _any(
    rf"(?:can|could) not (?!(?:be )?{SEE}\b).*",
    rf"can not {SEE} (?:clearly|well|properly|what|how|whether|if)|can not(?: {SEE})?$",
    rf"not (?:{SEE}|have|receive|received) (?:(?:the|this|that|your|any|an?) )*{PICTURE}(?:$| (?:you|attached|provided|itself))",
    rf"(?:{SEE}|have|got) no {PICTURE}$",
    rf"^(?:there (?:is|was) )?no {PICTURE} (?:was|were|is|are|provided|attached|here)",
    r"(?:do|did) not (?:know|understand)",
    r"(?:no|not an?y?|not have(?: \w+)?) (?:idea|clue|information|access|ability|context|way)",
    r"not (?:(?:\w+ly|too|so|very|100) )*(?:sure|certain|clear|confident|convinced|known|confirmed|possible|enough|sufficient|applicable)",
    r"unsure|uncertain|unclear|unknown|ambiguous|inconclusive|undetermined|doubtful|insufficient|possible|depends|neither|not necessarily",
    r"maybe|perhaps|possibly|might|may (?:be|have|contain|show|include|not)|idk|dunno|n a|a chance|initially|at first",
    r"(?:probability|likelihood|odds|chances) of",
    rf"could (?:be|have|contain)(?! {SEE})",
    r"(?:hard|difficult|impossible|tricky|too \w+) (?:for me )?to",
    r"decline|refuse|rather not|will not (?:answer|say|guess|comment)",
    r"^if (?!you\b).*",
    r"there (?:would|should) be|used to|wish|hope|imagine|a stretch|supposedly|allegedly|reportedly",  # what is not, and hearsay
    r"(?:was|were|been) told|(?:people|they|some|others) (?:say|claim|think)|(?:sign|text|caption|label|title)s? (?:says?|reads?)",
    r"(?:allowed|permitted|forbidden|prohibited)",
    r"(?:without|more|enough) (?:\w+ )?(?:information|context|ability|access|data|details?)",
    r"(?:give|have|get|find) no answer|^(?:there is )?no answer|not have (?:\w+ )?(?:eyes|vision)",
)
OFFER = _any(r"let (?:me|us)", r"i (?:can|will|would|am) (?:be )?(?:happy|glad|help|assist|check|look|try)")  # "sure, let me look"
STATES = _any(  # what makes a clause a statement
    rf"there (?:{BE}|not)",
    rf"^it {BE}(?: not)?(?:$| (?:{SEE}|{HERE}|{SHOW}|an?|one))",
    rf"^(?:they|he|she|i|we|this|that) {BE}",
    rf"(?:^it|^this|^that|{PICTURE})(?: {BE})?(?: not)? (?:{SHOW}|without)",
    rf"{SEE}|{BE}(?: not)* {HERE}|^(?:not )?{VISIBLE}(?: here)?$",
)
CORRECTION = _any(
    r"^(?:no |oh |but )*(?:wait|actually|correction|hold on|oops|scratch that|on second|i mean|(?:up)?on closer)",
    "i meant",
    "looking (?:again|closer)",
)
CONCLUSION = _any("answer|conclusion|verdict|so|thus|hence|therefore|overall|finally|final")
TURN = re.compile(
    r"(?<!the )(?<!this )(?<!your )\b(?:question|q|user|human|instruction)s? ?\d* ?:|<\|?(?:im_end|eot_id|endoftext|end)\|?>|</s>|\[inst\]"
)
ANSWER = _any(r"(?:answer|a|assistant|response)s? ?\d* ?:")


_SAME = [(_any(wordings), same) for wordings, same in SAME]


def letters(text: str) -> str:
    """With plain letters, apostrophes and stops instead of typographic, wide and invisible ones."""
    text = unicodedata.normalize("NFKC", APOSTROPHES.sub("'", VARIANTS.sub("", text)))
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return text.replace("\N{IDEOGRAPHIC FULL STOP}", ". ").replace("\N{IDEOGRAPHIC COMMA}", ", ")


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    text = re.sub(r"(?:\s-+\s|\s*(?:[-=]+>|[=|\N{RIGHTWARDS ARROW}]))\s*(?=(?:yes|no)\W*$)", ": ", text.lower())  # "dog - no"
    text = re.sub(r"\b(yes|no)(?= ?\([^()]*\)\W*$)", r"\1,", text)  # "no (none)"
    text = re.sub(r"\s-+\s|-+>|[\N{EN DASH}\N{EM DASH}]", " , ", text)
    text = re.sub(r"([,:])", r" \1 ", re.sub(r"[^\w',:]|_|(?<!\w)'|'(?!\w)", " ", text))
    text = REPEATED.sub(r"\1", " ".join(text.split()))
    for wordings, same in _SAME:
        text = " ".join(wordings.sub(same, text).split())
    return " ".join(text.replace(":", " is ").split())


def is_function(word: str) -> bool:
    """Whether a word names nothing: "the", "is", "see", "visible"."""
    return word in FUNCTION or re.fullmatch(f"{SEE}|{SHOW}|{HERE}", word) is not None


def stem(word: str) -> str:
    """Without the endings of plurals and verbs; not always a word ("horse" and "horses" are "hors")."""
    word = IRREGULAR.get(word, re.sub(r"(?<=kni|lea|loa|wol|hal|cal)ves$|(?<=shel|scar)ves$", "f", word))
    word = re.sub(r"(?<=\w\w)(?:(?<=ss|ch|sh|zz|us)es|(?<=x)es|(?<![su])s)$", "", word)
    return re.sub(r"(?<=\w\w)(?:ie|[ey])$", "", re.sub(r"(?<=\w\w\w)(?:ing|ed)$", "", word))
