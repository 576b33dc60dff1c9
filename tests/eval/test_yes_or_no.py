"""Yes or no in free answers: pairs of opposite answers, answers that are neither, and answers that only their question explains."""

from __future__ import annotations

import re

import pytest

from eval.base.answers import yes_or_no

# (says yes, says no): the same answer with its polarity turned.
PAIRS = [
    ("Yes", "No"),
    ("yes.", "no."),
    ("YES!", "NO!"),
    ("Y", "N"),
    ("Yeah", "Nah"),
    ("Yep.", "Nope."),
    ("Yup", "Nope"),
    ("True", "False"),
    ("Correct.", "Incorrect."),
    ("Right.", "Wrong."),
    ("Affirmative.", "Negative."),
    ("Yes yes yes", "No no no"),
    ("Yes, yes.", "No, no."),
    # An affirming adverb alone, and denied.
    ("Absolutely.", "Absolutely not."),
    ("Definitely.", "Definitely not."),
    ("Certainly!", "Certainly not!"),
    ("Of course.", "Of course not."),
    ("Surely", "Surely not"),
    ("Sure", "Not at all"),
    ("Sure thing.", "No way."),
    ("Indeed.", "Not really."),
    ("Exactly.", "Not exactly."),
    ("Obviously.", "Obviously not."),
    ("Clearly", "Clearly not"),
    ("Probably.", "Probably not."),
    ("Most likely.", "Most likely not."),
    ("Undoubtedly.", "Undoubtedly not."),
    ("For sure.", "For sure not."),
    ("Without a doubt.", "By no means."),
    ("No doubt.", "Not in the least."),
    ("Very much so.", "Not that I can see."),
    ("By all means.", "Not in this picture."),
    ("Definitely yes.", "Definitely no."),
    ("Absolutely yes!", "Absolutely no!"),
    ("Definitely a dog.", "Definitely no dog."),
    ("Certainly, there is a dog.", "Certainly, there is no dog."),
    ("Indeed, the image shows a dog.", "Indeed, the image does not show a dog."),
    ("Clearly there is a dog.", "Clearly there is no dog."),
    # Behind a lead-in.
    ("Answer: yes", "Answer: no"),
    ("Answer: Yes.", "Answer: No."),
    ("The answer is yes.", "The answer is no."),
    ("The correct answer is: Yes", "The correct answer is: No"),
    ("the answer to the question is yes", "the answer to the question is no"),
    ("My answer would be yes.", "My answer would be no."),
    ("I would say yes.", "I would say no."),
    ("I'd say yes", "I'd say no"),
    ("It's a yes from me.", "It's a no from me."),
    ("A: yes", "A: no"),
    ("A: Yes, there is.", "A: No, there is not."),
    ("ASSISTANT: Yes", "ASSISTANT: No"),
    ("### Response:\nYes", "### Response:\nNo"),
    ("Final answer: **Yes**", "Final answer: **No**"),
    ("<answer>yes</answer>", "<answer>no</answer>"),
    ("<answer> Yes, there is. </answer>", "<answer> No, there isn't. </answer>"),
    ("<think>No dog? There is one.</think> Yes", "<think>A dog? There is none.</think> No"),
    ('"Yes"', '"No"'),
    ("'yes'", "'no'"),
    ("“Yes.”", "“No.”"),
    ("`yes`", "`no`"),
    ("**Yes**, there is.", "**No**, there is not."),
    ("*Yes*", "*No*"),
    ("_yes_", "_no_"),
    ("(yes)", "(no)"),
    ("[Yes]", "[No]"),
    ("\\boxed{yes}", "\\boxed{no}"),
    ('{"answer": "yes"}', '{"answer": "no"}'),
    ("yes</s>", "no</s>"),
    ("- Yes", "- No"),
    ("1. Yes", "1. No"),
    ("Well, yes", "Well, no"),
    ("Well yes.", "Well no."),
    ("Oh yes", "Oh no"),
    ("Hmm... yes.", "Hmm... no."),
    ("So, yes.", "So, no."),
    ("Sorry, yes.", "Sorry, no."),
    ("Question: Is there a dog? Answer: Yes", "Question: Is there a dog? Answer: No"),
    ("Is there a dog in the image? Yes.", "Is there a dog in the image? No."),
    ("In the image: yes", "In the image: no"),
    # In a sentence.
    ("Yes, there is a dog in the image.", "No, there is no dog in the image."),
    ("yes there is", "no there isn't"),
    ("Yes it is", "No it isn't"),
    ("Yes, I do.", "No, I don't."),
    ("Yes, I can see a dog.", "No, I can't see a dog."),
    ("Yes - there is.", "No - there is not."),
    ("Yes — there is.", "No — there is not."),
    ("Yes; there is one.", "No; there is none."),
    ("Yes because I see it.", "No because I don't see it."),
    ("Yes, but I'm not sure.", "No, but I'm not sure."),
    ("Yes, there is a dog, but no cat.", "No, there is no dog, but there is a cat."),
    ("I think yes.", "I think no."),
    ("I think so.", "I don't think so."),
    ("I believe so", "I don't believe so"),
    ("I think it is.", "I think not."),
    ("That is correct.", "That is not correct."),
    ("That's right.", "That's not right."),
    ("That's true.", "That's false."),
    ("This is correct.", "This is incorrect."),
    ("You are right.", "You are wrong."),
    ("The statement is true.", "The statement is false."),
    # Statements that restate the question.
    ("There is.", "There isn't."),
    ("There is a dog.", "There is no dog."),
    ("There is a dog in the image.", "There isn\u2019t a dog in the image."),
    ("There's a dog.", "There's no dog."),
    ("There are some.", "There are none."),
    ("There are two dogs.", "There are zero dogs."),
    ("There are dogs", "There are not any dogs"),
    ("there is one", "there isnt one"),
    ("There appears to be a dog.", "There does not appear to be a dog."),
    ("There seems to be a dog.", "There seems to be no dog."),
    ("It is.", "It is not."),
    ("It does.", "It doesn't."),
    ("They are.", "They aren't."),
    ("It is a dog.", "It is not a dog."),
    ("I do.", "I do not."),
    ("I see a dog.", "I don't see a dog."),
    ("I see a car on the road.", "I see no car on the road."),
    ("I can see a dog.", "I cannot see a dog."),
    ("I can see one.", "I can't see any."),
    ("I could find a dog.", "I could not find a dog."),
    ("I was able to find a dog.", "I was unable to find a dog."),
    ("We can see a dog here.", "We can not see a dog here."),
    ("The image contains a car.", "The image does not contain a car."),
    ("The picture shows a car.", "The picture shows no car."),
    ("This photo features a car.", "This photo doesn't feature a car."),
    ("The image has a car.", "The image lacks a car."),
    ("The image includes a car.", "The image is without a car."),
    ("A car is visible.", "No car is visible."),
    ("A car is present in the image.", "A car is not present in the image."),
    ("A car is present.", "A car is absent."),
    ("The car is not missing.", "The car is missing."),
    ("A dog can be seen.", "A dog cannot be seen."),
    ("Some dogs can be seen in the picture.", "No dogs can be seen in the picture."),
    ("There is not only a dog but also a cat.", "There is neither a dog nor a cat."),
    ("There is no doubt that there is a dog.", "There is no doubt that there is no dog."),
    ("I think there is a dog.", "I don't think there is a dog."),
    ("I'm sure there is a dog.", "I'm sure there is no dog."),
    ("I am certain that there is one.", "I am certain that there is none."),
    ("In the picture, there are two dogs. No cats.", "In the picture, there are no dogs. Two cats."),
    ("There is a dog that may be a labrador.", "There is no dog that I can see."),
    ("There is a dog, possibly a labrador.", "There is no dog, possibly a cat."),
    ("There is a dog, but I can't tell the breed.", "There is no dog, but I can't tell why."),
    # The verdict comes later.
    ("Let me look. Yes, there is.", "Let me look. No, there isn't."),
    ("Let me think about it.\nYes", "Let me think about it.\nNo"),
    ("Looking at the picture, yes.", "Looking at the picture, no."),
    ("This is a photo of a street. There is a car.", "This is a photo of a street. There is no car."),
    ("The photo was taken at night. The answer is yes.", "The photo was taken at night. The answer is no."),
    ("A man rides a horse.\n\nAnswer: Yes", "A man rides a horse.\n\nAnswer: No"),
    ("It is hard to tell, but yes.", "It is hard to tell, but no."),
    ("I'm not sure, but I would say yes.", "I'm not sure, but I would say no."),
    ("The dog is big. So the answer is yes", "The dog is big. So the answer is no"),
    ("I'm sorry, but there is a dog.", "I'm sorry, but there is no dog."),
    ("I'm not entirely sure, but there is a dog.", "I'm not entirely sure, but there is no dog."),
    ("To determine if there is a dog, I look at it. There is one.", "To determine if there is a dog, I look at it. There is none."),
    ("Sure, I can help with that. Yes, there is.", "Sure, I can help with that. No, there isn't."),
    ("Great question! Yes.", "Great question! No."),
    # Found, shown, and their opposites.
    ("It contains a dog.", "It contains no dog."),
    ("I spotted a dog.", "I fail to see a dog."),
    ("A dog was found.", "A dog was not found."),
    ("Visible.", "Not visible."),
    ("Present", "Not present"),
    ("It looks like it.", "It doesn't look like it."),
    ("That is the case.", "That is not the case."),
    ("It is true that there is a dog.", "It is not true that there is a dog."),
    ("It is likely.", "It is unlikely."),
    ("I wouldn't say no.", "I wouldn't say yes."),
    ("That seems right.", "That seems wrong."),
    ("I'm sure there is.", "I doubt it."),
    ("Fortunately, yes.", "Unfortunately not."),
    ("Yes sir", "No sir"),
    ("Yesss", "Nooo"),
    ("dog: present", "dog: absent"),
    ("Presumably.", "Presumably not."),
    ("Almost certainly.", "Almost certainly not."),
    ("Very likely.", "Very unlikely."),
    ("It would seem so.", "It would seem not."),
    ("For sure.", "Far from it."),
    ("Absolutely.", "Hardly."),
    ("I can't assist with identifying people. However, there is a dog.", "I'm not able to tell. However, there is no dog."),
]

NEITHER = [
    "",
    " ",
    "...",
    "?",
    "blue",
    "A dog",
    "two",
    "nobody",
    "yesterday",
    "Norway",
    "know",
    "note",
    "yesno",
    "on the right",
    "the left",
    "a red circle and a blue square",
    "Is there a dog in the image?",
    # Contradictions.
    "yes and no",
    "Yes and no.",
    "yes or no",
    "yes/no",
    "Yes, no",
    "No, yes.",
    "Yes. No.",
    "no. yes.",
    "neither yes nor no",
    "Both yes and no.",
    "Yes, there isn't.",
    "No, there is.",
    "Yes. The answer is no.",
    "No. Answer: yes",
    "Please answer yes or no.",
    "There is not. Yes.",
    "There is. No.",
    # Refusals and doubt.
    "I cannot determine whether there is a dog.",
    "I can't determine that.",
    "I cannot tell.",
    "I can not tell if there is a dog in the image.",
    "I cannot see whether there is a dog.",
    "I can't see if there is a dog.",
    "I cannot see the image.",
    "I can't see any image.",
    "I cannot see.",
    "I cannot say yes or no.",
    "I cannot say.",
    "I cannot confirm the presence of a dog.",
    "I cannot verify that there is a dog.",
    "I cannot provide an answer.",
    "I cannot help with that.",
    "I can't assist with this request.",
    "I cannot process the image, there is an error.",
    "I'm unable to determine whether there is a dog.",
    "I am unable to see the image.",
    "I'm not able to answer that.",
    "I could not decide.",
    "I will not answer that.",
    "As an AI language model, I cannot see images.",
    "It cannot be determined.",
    "It is unclear.",
    "It is unclear whether there is a dog.",
    "It's not clear if there is a dog.",
    "It is hard to tell whether there is a dog.",
    "It is impossible to say.",
    "It is difficult to tell.",
    "It is not possible to tell.",
    "I'm not sure.",
    "I am not sure whether there is a dog.",
    "Not sure",
    "not certain",
    "I'm not certain that there is a dog.",
    "unsure",
    "I don't know",
    "I do not know whether there is a dog.",
    "idk",
    "dunno",
    "no idea",
    "I have no idea.",
    "No clue.",
    "maybe",
    "Maybe not.",
    "perhaps",
    "Perhaps there is a dog.",
    "Possibly.",
    "There might be a dog.",
    "There may be a dog.",
    "There could be a dog.",
    "There might not be a dog.",
    "It depends.",
    "There is not enough information.",
    "I do not have enough information.",
    "I don't understand the question.",
    "Unknown",
    "N/A",
    "If there is a dog, it is hidden.",
    "The image is too dark to tell.",
    "There's no way to know.",
    "I don't see an image.",
    "No image was provided.",
    "I don't have access to the image.",
    "Not necessarily.",
    "Not known",
    "It's possible.",
    "Sure, let me look at the image.",
    "Certainly, I can help with that.",
]

# (question, says yes, says no)
ASKED = [
    ("Is there a car in the image?", "A car.", "No car."),
    ("Is there a car in the image?", "a red car parked on the street", "no car on the street"),
    ("Is there a car in the image?", "The image contains a car.", "There is no car in the image."),
    ("Is there a car in the image?", "Cars are parked on the street.", "Cars are nowhere, not on the street."),
    ("Is there a dog in the image?", "There is a cat and a dog.", "There is a cat and no dog."),
    ("Is there a dog in the image?", "There is a dog but no cat.", "There is a cat but no dog."),
    ("Is there a dog in the image?", "There is no cat, but a dog.", "There is a cat, not a dog."),
    ("Is there a bird in the image?", "There is a dog, a cat, and a bird.", "There is no dog, cat, or bird."),
    ("Is there a person in the image?", "There are two people.", "There are no people."),
    ("Is there a knife in the image?", "Two knives lie on the table.", "There are no knives on the table."),
    ("Is there a dining table in the image?", "There is a table.", "There is no table."),
    ("is there a red star?", "there is a small red star", "there is no red star"),
    ("Is the car red?", "The car is red.", "The car is not red."),
    ("Is it raining?", "It is raining.", "It is not raining."),
    ("Is there a dog in the image?", "Yes. There is no cat.", "No. There is a cat."),
    ("Is there a dog in the image?", "Definitely. There is no cat.", "Definitely not. There is a cat."),
    ("Is there a dog in the image?", "I see one.", "I see none."),
    ("Is there a dog in the image?", "No cat. There is a dog.", "A cat. There is no dog."),
    ("Is there a dog in the image?", "Yes, it is.", "No, it is a cat."),
    ("Is there a dog in the image?", "dog present", "dog absent"),
    ("Is there a dog in the image?", "There is a dog instead of a cat.", "There is a cat instead of a dog."),
    ("Is there a dog in the image?", "There are two of them.", "There aren't any of them."),
    ("Is there a dog in the image?", "I see a couch. I see a TV. I see a dog.", "I see a couch. I see a TV. I do not see a dog."),
    ("Is there a dog in the image?", "a dog on a couch", "Just a couch, no dog"),
    ("Is there a dog in the image?", "Answer (yes/no): Yes", "Answer (yes/no): No"),
    ("Is there a dog in the image?", "Yes/No: Yes", "Yes/No: No"),
    # What is denied of the object is not its existence.
    ("Is there a dog in the image?", "Yes, there is a dog in the image with no collar.", "No, there is a cat with no dog in sight."),
    ("Is there a dog in the image?", "There is a dog without a collar.", "There is a cat without a dog."),
    ("Is there a dog in the image?", "Yes, the dog isn't looking at the camera.", "No, the dog isn't in the image."),
    ("Is there a dog in the image?", "Yes, the dog does not have a collar.", "No, the dog does not appear in it."),
    ("Is there a bench in the image?", "Yes, there is a bench with nobody on it.", "No, a bench can not be seen."),
    ("Is there a chair in the image?", "There is no lack of light, and there is a chair.", "There is an absence of chairs."),
    ("Is there a chair in the image?", "I looked for a chair and found one.", "I looked for a chair, but didn't find one."),
    # A part of the name decides only where nothing else does.
    ("Is there a stop sign in the image?", "There is a sign, and it is a stop sign.", "There is a sign, but it is not a stop sign."),
    ("Is there a stop sign in the image?", "Yes, there is a sign.", "No, there is a sign, but it is not a stop sign."),
    ("Is there a hot dog in the image?", "Yes, no dog but a hot dog.", "No, the image shows a dog."),
    ("Is there a wine glass in the image?", "Yes, the image features a glass.", "No, the image features a glass of water."),
]
NEITHER_ASKED = [
    ("Is there a dog in the image?", "There is a cat in the image."),
    ("Is there a dog in the image?", "There is no cat in the image."),
    ("Is there a dog in the image?", "a man on a horse"),
    ("is there a red star?", "there is a blue star"),
    ("is there a red star?", "there is a red circle"),
    ("Is the car red?", "The car is blue."),
    ("Is there a dog in the image?", "Yes, there is no dog in the image."),
    ("Is there a dog in the image?", "No, there is a dog in the image."),
    ("Is there a dog in the image?", "No. The image shows a dog."),
    ("Is there a dog in the image?", "I cannot tell if there is a dog."),
]

# Words of one polarity and their opposites, for turning an answer round.
OPPOSITE = {"yes": "no", "yep": "nope", "yup": "nope", "yeah": "nah", "true": "false", "correct": "incorrect", "right": "wrong"}
OPPOSITE |= {"affirmative": "negative", "y": "n"}


@pytest.mark.parametrize(("affirmed", "denied"), PAIRS)
def test_both_polarities(affirmed: str, denied: str) -> None:
    assert (yes_or_no(affirmed), yes_or_no(denied)) == (True, False)


@pytest.mark.parametrize("answer", NEITHER)
def test_what_is_neither_stays_unparsed(answer: str) -> None:
    assert yes_or_no(answer) is None


@pytest.mark.parametrize(("question", "affirmed", "denied"), ASKED)
def test_the_question_says_what_a_statement_is_about(question: str, affirmed: str, denied: str) -> None:
    assert (yes_or_no(affirmed, question), yes_or_no(denied, question)) == (True, False)


@pytest.mark.parametrize(("question", "answer"), NEITHER_ASKED)
def test_a_statement_about_something_else_is_neither(question: str, answer: str) -> None:
    assert yes_or_no(answer, question) is None


def test_the_table_is_long() -> None:
    assert len(PAIRS) > 100
    assert len(NEITHER) > 60


@pytest.mark.parametrize("said", [said for said, _ in PAIRS if any(word in OPPOSITE for word in re.findall(r"[a-z]+", said.lower()))])
def test_turning_the_polarity_words_turns_the_verdict(said: str) -> None:
    """Every word is turned, and a statement that follows the first word loses its verdict: it would contradict it."""
    turned = re.sub(r"[A-Za-z]+", lambda match: OPPOSITE.get(match[0].lower(), match[0]), said)
    assert yes_or_no(said) is True
    assert yes_or_no(turned) in ((False, None) if re.search(r"\b(?:is|do|see)\b", turned) else (False,))


FRAMES = ["{}", "{}.", "Answer: {}", "The answer is {}.", "Well, {}", "**{}**", "<answer>{}</answer>", '"{}"', "Hmm. {}!", "A: {}\n"]
WORDS = [("yes", "no"), ("yep", "nope"), ("yeah", "nah"), ("true", "false"), ("correct", "incorrect")]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("form", [str.lower, str.upper, str.capitalize])
def test_the_wrapping_does_not_matter(frame: str, words: tuple[str, str], form: type[str]) -> None:
    assert [yes_or_no(frame.format(form(word))) for word in words] == [True, False]


ADVERBS = ["Absolutely", "Definitely", "Certainly", "Of course", "Surely", "Clearly", "Obviously", "Probably", "Undoubtedly", "Most likely"]
STATEMENTS = [
    ("there is a {}", "there is no {}"),
    ("there's a {}", "there isn't a {}"),
    ("I see a {}", "I don't see a {}"),
    ("I can see a {}", "I cannot see any {}"),
    ("the image contains a {}", "the image does not contain a {}"),
    ("a {} is visible", "no {} is visible"),
    ("a {} can be seen", "a {} can't be seen"),
]


@pytest.mark.parametrize("adverb", ADVERBS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_adverb_does_not_outweigh_its_statement(adverb: str, statement: tuple[str, str]) -> None:
    for question in ("", "Is there a car in the image?"):
        for text, truth in zip(statement, (True, False), strict=True):
            for joint in (" ", ", "):
                assert yes_or_no(f"{adverb}{joint}{text.format('car')}.", question) is truth
        assert yes_or_no(f"{adverb}.", question) is True
        assert yes_or_no(f"{adverb} not.", question) is False


def test_an_always_right_model_is_always_right() -> None:
    """In every wording of the table, half of the answers are yes."""
    verdicts = [(yes_or_no(affirmed), yes_or_no(denied)) for affirmed, denied in PAIRS]
    assert sum(affirmed is True for affirmed, _ in verdicts) == sum(denied is False for _, denied in verdicts) == len(PAIRS)
