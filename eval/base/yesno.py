"""Yes or no in a free answer: "Yes.", "Definitely not.", "Answer: no", "The image contains a car.", "I don't see a car".

An answer is read clause by clause. A clause can hold

- a word that answers by itself: "yes", "nope", "that is correct", "definitely not". The first one decides, also behind doubt ("hard to
  tell, but yes"). Two that differ ("yes and no") leave the answer unparsed;
- an affirming adverb: "absolutely", "of course". It decides unless a statement follows in its sentence ("certainly, there is no dog");
- a statement, which decides where no word does: "there is a dog", "I see no dog". It must be about what the question asks for, so
  "there is a cat" does not answer "is there a dog?"; without a question it is taken to restate it. A statement that contradicts a
  word leaves the answer unparsed. "A table" for "a dining table" decides only where nothing else does. What is denied of the object
  itself is not its existence: "there is a dog with no collar", "the dog is not looking";
- doubt or a refusal: "I cannot tell", "it is unclear", "there might be a dog". Statements behind it count for nothing, unless they are
  set against it ("I'm not sure, but there is a dog"). "Cannot" with any verb is a refusal, except that "I cannot see a dog" (find,
  detect, ...) denies the dog. "I cannot see the image" and "I cannot see whether there is a dog" are refusals.

Both polarities are read by the same rules. What is neither is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


YES = _words("yes yeah yep yup yea aye true affirmative")
NO = _words("no nope nah nay false negative")
# Words that affirm when they stand alone. Phrases that do so are rewritten to "indeed", those that deny to "nope".
AFFIRMING = _words(
    "absolutely definitely certainly surely sure indeed exactly precisely obviously clearly evidently apparently probably likely "
    "undoubtedly unquestionably presumably naturally totally positively correct right"
)
EMPHATIC = AFFIRMING - _words("exactly precisely clearly correct right sure totally")  # also affirm what follows: "certainly a dog"
DENIALS = _words("no not none never nothing nobody nowhere neither nor zero 0 without lack lacks lacking devoid")
OPENING = _words("no not none never neither nor without")  # deny what follows without a verb: "no dog"
INVERTED = _words("absent missing")  # "is absent" denies, "is not absent" affirms
PRONOUNS = r"(?:there|it|i|they|we|he|she|this|that|you|these|those)"
SEEING = r"(?:see|find|spot|notice|observe|detect|locate|perceive|discern|identify|recogni[sz]e|make out)"
SEEN = r"(?:seen|found|spotted|noticed|observed|detected|located|perceived|discerned|identified|recogni[sz]ed|made out)"
PICTURE = r"(?:images?|pictures?|photos?|photographs?|scene)"
SO = r"(?:so|like it|that way)\b"
CASE = r"(?:the case|so)$"

REWRITTEN = [  # in this order, in lower case
    (r"\b(is|are|was|were|do|does|did|has|have|had|could|would|should|ca|wo|ai)n'?t\b", r"\1 not"),
    (r"\bca not\b|\bcannot\b", "can not"),
    (r"\bwo not\b", "will not"),
    (r"\bai not\b", "is not"),
    (r"\b(it|he|she|this|here)'s\b", r"\1 is"),
    (r"\b(that|there)'?s\b", r"\1 is"),
    (r"\bi'?m\b", "i am"),
    (r"'re\b", " are"),
    (r"'d\b", " would"),
    (r"'ll\b", " will"),
    (r"'ve\b", " have"),
    (r"(?<!\w)'|'(?!\w)", " "),
    (r"\bunable to\b", "not able to"),
    (r"\b(?:almost|very|quite) (?=(?:cert|sure|like|unlike|prob|clear|obvious|defin))", ""),
    (r"\b(?:an? |the )?(?:absence|lack) of\b", "no"),
    (r"^(?:i|we) (?:have )?(?:looked|searched|checked)(?: \w+)? for [^,]*?(?= (?:and|but)\b|,|$)", ""),
    (r"\byes no ?:", ""),  # "Answer (yes/no): no"
    (r"\byes or no\b|\bwhether or not\b", "whether"),
    (r"\b(?:no|without (?:a |any )?|beyond (?:a |any )?) ?(?:doubt|question)\b", "indeed"),
    (r"\b(?:instead of|rather than|as opposed to)\b", ", not"),
    (r"\bno{2,}\b", "no"),
    (r"\byes{2,}\b", "yes"),
    (r"\bnot (?:only|just|merely|simply)\b|\bno (?:less|fewer|more) than\b", ""),
    (
        rf"\bi (?:think|believe|guess|suppose) so\b|\b(?:it|that) (?:(?:would )?(?:seem|appear)s?|looks) {SO}|\b(?:that|this|it) is {CASE}",
        "indeed",
    ),
    (r"\bi do not (?:think|believe|suppose) so\b", "nope"),
    (rf"\b(?:it|that) does not (?:seem|appear|look) {SO}|\b(?:that|this|it) is not {CASE}", "nope"),
    (r"\bi do not (?:think|believe|suppose)(?: that)?\b|\bit is (?:not true|false) that\b|\bfail(?:s|ed)? to\b", "not"),
    (r"\bi doubt(?: that)?\b(?! it\b)", "not"),
    (r"\bi doubt it\b|\bnot that i (?:know of|can tell|am aware of)\b", "nope"),
    (r"\bof course\b|\bfor sure\b|\bsure thing\b|\bby all means\b|\byou bet\b|\bvery much so\b|\bmost likely\b", "indeed"),
    (r"\bunlikely\b", "not likely"),
    (r"^(?:it (?:seems|appears|would seem|would appear) not|hardly|far from it|under no circumstances)$", "nope"),
    (r"\babsolutely (?:nothing|none)\b", "absolutely not"),
    (r"\b(?:not at all|not in the least|not really|not exactly|not quite|by no means|no way|in no way)(?=$|,)", "nope"),
    (r"\b(?:that|this|it|you) (?:is|are|seems|sounds) (?:absolutely |totally )?(?:right|correct)$", "indeed"),
    (r"\b(?:that|this|it|you) (?:is|are|does) not (?:seem |sound )?(?:right|correct)$", "nope"),
]
FILLER = re.compile(
    r"^(?:(?:well|so|oh|ok|okay|u[mh]|h+m+|ah|and|or|then|actually|honestly|sorry|unfortunately|fortunately|i am afraid"
    r"|also|just|only|instead|(?:i|we) (?:would |will )?(?:think|believe|guess|suppose|say|assume|suspect)|it (?:seems|appears)"
    r"|i am (?:very |quite |pretty |fairly |absolutely |almost )*(?:sure|certain|confident|positive|convinced)"
    r"|it is (?:clear|obvious|evident|true|certain|likely)(?= that\b))(?: that)?(?: |$))+"
)
CANNOT = r"\b(?:can not|could not|not able to) (?:(?:clearly|really|actually|currently|directly) )*"
A_PICTURE = rf"(?:(?:the|this|that|your|any|an?|no) )*{PICTURE}(?:$| (?:you|that|or|itself|attached|provided|here)\b)"
DOUBT = re.compile(
    rf"\b(?:can|could) not (?!(?:(?:clearly|really|actually|even|be) )*(?:{SEEING}|{SEEN})\b)|\b(?:can|could) not$"
    rf"|\bnot able to (?!(?:(?:clearly|really) )*{SEEING}\b)|{CANNOT}{SEEING}(?: (?:clearly|well|properly|what|how|anything$)|$)"
    rf"|(?:\bnot |{CANNOT}){SEEING} {A_PICTURE}|^(?:there (?:is|was) )?no {PICTURE}(?:$| (?:is|was|were|attached|provided|here)\b)"
    r"|\b(?:do|did) not (?:know|understand|have (?:\w+ )?(?:idea|clue|information|access|ability|context|way)\b)"
    r"|\bnot (?:(?:entirely|completely|quite|fully|very|too|so|100) )?(?:sure|certain|clear|confident|known|confirmed|necessarily)\b"
    r"|\bnot (?:enough|sufficient|applicable)\b"
    r"|\bno (?:idea|clue|information|way (?:to|of))\b|\b(?:hard|difficult|impossible|tricky) (?:for me )?to\b|\btoo \w+ (?:for me )?to\b"
    r"|\b(?:unsure|uncertain|unclear|unknown|ambiguous|inconclusive|maybe|perhaps|possibly|might|idk|dunno|depends|insufficient|possible)\b"
    rf"|\bmay (?:be|have|contain|show|include|not)\b|\bcould (?:be|have|contain)\b(?! {SEEN})"
    r"|\bi (?:must |have to )?(?:decline|refuse)\b|\bwill not (?:answer|say|guess|comment)\b|\brather not\b"
    r"|^neither$|^n a$|^if (?!you\b)"
)
SHOWING = r"(?:contain|show|include|depict|feature|display|present|portray)s?"
EVIDENT = rf"(?:visible|present|shown|depicted|pictured|displayed|absent|missing|{SEEN})"
STATES = re.compile(  # of a clause without "not" and adverbs: what makes it a statement
    r"\bthere (?:does |do |did )?(?:is|are|was|were|appears?|seems?|exists?)\b"
    rf"|^(?:it|they|he|she) (?:is|are|was|were|does|do|did|has|have)\b|^{PRONOUNS} (?:is|are|does|do|did)$|\bi (?:do|did)$"
    rf"|(?:\b{PICTURE}|^it|^this) (?:does |do )?{SHOWING}\b|\b{PICTURE} (?:does |do )?(?:has|have|lacks?|is without|is devoid)\b"
    rf"|\b(?:is|are|was|were|be) {EVIDENT}\b|^{EVIDENT}$"
    rf"|\b(?:i|we|you|one) (?:(?:can|could|do|did|am able to|was able to) )*(?:{SEEING}|{SEEN}|saw)\b"
    rf"|\b(?:is|are) (?:in|on) (?:the|this) {PICTURE}\b|^(?:did )?(?:{SEEING}|{SEEN}) (?:one|any|some|none|it)\b"
)
ABSENT = re.compile(r"\b(?:there|here|nowhere|exists?|appears?|among|one of|in (?:it|view|sight))\b|\b(?:is|are)$")  # behind an object
SKIPPED = AFFIRMING | DENIALS - _words("without lack lacks devoid")
SEPARATOR = re.compile(
    r"\s*(?:[,:]|\b(but|however|although|though|instead)\b,?|\bbecause\b|\bsince\b|\b(?:which|who)\b"
    r"|\band (?=(?:no|not|an?|there|it|i|they|the|yes)\b)|\bthat (?=(?:is|are|may|might|could|looks?|seems?|appears?)\b))\s*"
)
LEADING = re.compile(rf"(?:{'|'.join(sorted((YES | NO) - {'no'}))}|no(?= (?:{PRONOUNS}|not|no|yes|sir)\b))\b ?")
OFFER = re.compile(  # "sure, let me look": an adverb that answers another question
    r"\blet me\b|\bi (?:can|will|would|am) (?:be )?(?:happy|glad|help|assist|check|look|try)\b|\bhere (?:is|are)\b"
)
FUNCTION = _words(
    "a an the any some one ones of in on at to with from for by as and or i you we they it its he she this that these those there "
    "here is are was were be been being am do does did has have had can could will would able see sees seen find found spot spotted "
    "notice observe detect detected locate perceive discern identify recognize recognise make made out visible present shown depicted "
    "pictured displayed image images picture pictures photo photos photograph scene object objects thing things contain contains show "
    "shows include includes depict depicts feature features display displays portray exist exists appear appears seem seems such like "
    "also clearly anywhere what which who them something somebody someone anything anybody anyone yes answer question"
) | (DENIALS | INVERTED | AFFIRMING | YES | NO)
EXISTENCE = re.compile(r"\b(?:there|contains?|shows?|see|visible|present|any|appears?|depicts?|includes?|features?)\b")
PREPOSITION = re.compile(r"\b(?:in|on|at|of|with|near|behind|under|over|by|from|next|that|which|who)\b")
COUNTS = _words("two three four five six seven eight nine ten several many few couple lot lots plenty")
BEFORE_NOUN = _words("a an the any some no this that of")
IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "knives": "knife", "mice": "mouse", "geese": "goose"}

Words = Sequence[str]
Asked = tuple[bool, tuple[str, ...]]


def yes_or_no(answer: str, question: str = "") -> bool | None:
    """The verdict of a free answer; None when it is neither yes nor no, or both. The question tells what statements are about."""
    asked = _asked(question)
    spoken: bool | None = None  # by a word or an adverb
    firm = doubted = compared = answered = False
    stated: bool | None = None
    named: bool | None = None  # stated of a part of the name: "a table" for "a dining table"
    for sentence in _sentences(answer):
        adverb: bool | None = None
        said_here = False  # a statement about the question in this sentence
        before = True  # polarity of the clause before, which items of a list inherit: "no dog, cat or bird"
        for contrast, clause in _clauses(sentence):
            kind, verdict, before = _read(clause, asked, contrast or before)
            doubted = doubted and not contrast
            if kind == "doubt":
                doubted = True
            elif kind == "adverb":
                adverb = True
            elif kind == "word":
                if firm and verdict != spoken:
                    return None
                spoken, firm = verdict, True
            elif kind == "part":
                said_here = True
                named = verdict if named is None and not doubted else named
            elif kind in ("statement", "ellipsis"):
                said_here = True
                if spoken is not None:
                    if verdict != spoken and not compared and (asked or kind == "ellipsis"):
                        if firm:
                            return None
                        spoken = verdict
                    compared = True
                elif stated is None and not doubted:
                    stated, answered = verdict, asked is not None or kind == "ellipsis"
        if adverb and not said_here and spoken is None and not OFFER.search(sentence):
            spoken = True
    if answered and spoken not in (None, stated):
        return None
    return next((verdict for verdict in (spoken, stated, named) if verdict is not None), None)


@lru_cache(maxsize=10_000)
def _asked(question: str) -> Asked | None:
    """Whether the question is about existence, and the stems of its content words: "is there a red star in it?" -> red, star.
    None without any."""
    plain = _plain(question)
    exists = EXISTENCE.search(plain) is not None
    words = re.findall(r"\w+", plain)
    if exists:  # what is in the picture, not where
        first = next((i for i, word in enumerate(words) if word not in FUNCTION), 0)
        place = next((i for i, word in enumerate(words) if i > first and PREPOSITION.fullmatch(word)), len(words))
        words = words[:place]
    content = tuple(_stem(word) for word in words if word not in FUNCTION)
    return (exists, content) if content else None


def _sentences(answer: str) -> Iterator[str]:
    """In plain lower-case words, commas and colons; without the question, if it is repeated."""
    text = answer.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    text = re.split(r"</(?:think|thinking|reasoning)>", text)[-1]
    if tagged := re.search(r"<answer>(.*?)(?:</answer>|$)", text, re.DOTALL):
        text = tagged[1]
    text = re.sub(r"</?[a-z][^<>]*>", " ", text)
    if text.strip(" .()\"'*") in ("y", "n"):
        text = {"y": "yes", "n": "no"}[text.strip(" .()\"'*")]
    for part in re.findall(r"[^.!?;\n]+[.!?;\n]*", text):
        plain = _plain(part)
        if plain and not ("?" in part and len(plain.split()) > 2):
            yield plain


def _plain(text: str) -> str:
    text = re.sub(r"\s-+\s|[\N{EN DASH}\N{EM DASH}]", " , ", text.lower())
    text = " ".join(re.sub(r"[^\w\s',:]|_", " ", text).split())
    for pattern, plain in REWRITTEN:
        text = re.sub(pattern, plain, text)
    return " ".join(text.split())


def _clauses(sentence: str) -> Iterator[tuple[bool, str]]:
    """(whether it is set against the clause before, its words). A leading yes or no is a clause of its own."""
    label, _, said = sentence.partition(":")
    if said and not STATES.search(label) and not (YES | AFFIRMING | DENIALS | INVERTED).intersection(label.split()):
        sentence = said  # "answer: no", "in the image: a dog"
    parts = SEPARATOR.split(re.sub(r"(?<=\w) (?:if|whether)\b[^,:]*", "", sentence))
    for contrast, part in zip([None, *parts[1::2]], parts[0::2], strict=True):
        clause = FILLER.sub("", part.strip())
        while leading := LEADING.match(clause):
            yield False, leading[0].strip()
            clause = FILLER.sub("", clause[leading.end() :])
        if clause:
            yield contrast is not None, clause


def _read(clause: str, asked: Asked | None, inherited: bool) -> tuple[str, bool | None, bool]:
    """(kind, verdict, polarity) of a clause; kind "" for one that says nothing."""
    words = clause.split()
    denied = any(word in DENIALS for word in words)
    if clause in YES or clause in NO:
        return "word", clause in YES, clause in YES
    if DOUBT.search(clause) or (YES.intersection(words) and NO.intersection(words)):
        return "doubt", None, inherited
    if words[-1] in YES | NO | {"correct", "incorrect", "wrong"}:  # "the answer is no", "this is not true"
        true = (words[-1] in YES | {"correct"}) != any(word in DENIALS for word in words[:-1])
        return ("word" if len(words) > 1 or words[-1] != "correct" else "adverb"), true, true
    if any(word in YES - {"true"} for word in words):
        return "word", not denied, not denied
    rest = words
    while rest and rest[0] in AFFIRMING:
        rest = rest[1:]
    if not rest:
        return "adverb", True, True
    if rest == ["not"]:
        return "word", False, False
    kind, end = _about(rest, asked)
    states = _states(rest)
    tail = rest[end:]
    if asked and asked[0] and not DENIALS.intersection(rest[:end]) and not _states(tail) and not ABSENT.search(" ".join(tail)):
        denied = False  # of the object, not its existence: "a dog with no collar"
    opens = rest[0] in OPENING
    inverted = any(word in INVERTED for word in words)
    polarity = denied == inverted if states or denied or inverted else inherited
    if kind == "mention" or (kind and (states or opens or kind == "part")):
        return ("statement" if kind == "mention" else kind), polarity, polarity
    if not asked and words[0] in EMPHATIC:
        return "adverb", True, True
    return "", None, polarity


def _states(words: Words) -> bool:
    return STATES.search(" ".join(word for word in words if word not in SKIPPED)) is not None


def _about(words: Words, asked: Asked | None) -> tuple[str, int]:
    """How a clause is about the question, and where its mention ends: "mention" names what is asked for, "part" the last word of it,
    "ellipsis" nothing ("there is one"), "statement" where no question is known; "" when it is about something else."""
    stems = [_stem(word) for word in words]
    if all(word in FUNCTION or word in COUNTS for word in words):
        return "ellipsis", len(words)
    if not asked:
        return "statement", len(words)
    exists, content = asked
    if set(content) <= set(stems):
        return "mention", 1 + max(map(stems.index, content))
    heads = [i for i, stem in enumerate(stems) if stem == content[-1] and (i == 0 or words[i - 1] in BEFORE_NOUN)]
    return ("part", 1 + heads[0]) if exists and heads else ("", len(words))


def _stem(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if re.search(r"(?:ch|sh|x|ss|us)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word
