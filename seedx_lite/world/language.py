"""What can be said about a scene: captions and descriptions with boxes, and how to read them back.

Every sentence is a function of a `Scene` and a generator, in a grammar small for word-level tokenizers (`vocabulary`,
`words`). All text is lower case. Boxes are written as in SEED-X, with 224 location tokens:
`<box_start><loc-xc><loc-yc><loc-w><loc-h><box_end>` (official file: src/inference/eval_img2text_seed_x.py).
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, combinations, permutations

import numpy as np

from .scene import COLOURS, GROUNDS, KINDS, PLACES, POSES, SKIES, Scene, Thing

PLACE_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
SKY_PHRASES = {"day": "by day", "sunset": "at sunset", "night": "at night"}
GROUND_NAMES = {"grass": "grass", "sand": "sand", "snow": "snow", "street": "a street"}
VERBS = {  # what people do: "make the person wave", "a person waves"
    "standing": ("stand", "stands"),
    "waving": ("wave", "waves"),
    "sitting": ("sit", "sits"),
    "running": ("run", "runs"),
    "cheering": ("cheer", "cheers"),
}
PLURALS = {kind: "people" if kind == "person" else kind + "s" for kind in KINDS}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
EDIT_TEMPLATES = {  # filled by edits.py
    "recolour": ("make {thing} {colour}", "change the colour of {thing} to {colour}"),
    "recolour person": ("give {thing} {shirt}", "change the shirt of {thing} to {colour}"),
    "remove": ("remove {thing}", "erase {thing}", "take {thing} away"),
    "add": ("add {new} {place}", "put {new} {place}"),
    "replace": ("replace {thing} with {new}", "turn {thing} into {new}"),
    "move": ("move {thing} to the {place_name}", "put {thing} {place}"),
    "pose": ("make {thing} {verb}", "let {thing} {verb}"),
    "sky": ("make it {sky}", "change the sky to {sky}"),
    "ground": ("change the ground to {ground}", "replace the {old_ground} with {ground}"),
}
_FUNCTION_WORDS = (
    "a an the in on by at is are and or of to with into it there shirt beside , . ? [[ ]] "
    "what which where how many colour time doing ground things sky yes no taller nearer "
)

BOX_START, BOX_END = "<box_start>", "<box_end>"
LOCATIONS = 224
LOCATION_TOKENS = tuple(f"<loc-{i}>" for i in range(LOCATIONS))
DETECTION_PROMPT = "{caption} [[ " + BOX_START  # the model goes on with `<loc-…>…<box_end> ]]`
_BOX = re.compile(BOX_START + r"((?:<loc-\d+>)*)" + BOX_END)
_ANY_BOX = re.compile(rf"{BOX_START}.*?(?:{BOX_END}|$)", re.DOTALL)  # also a broken one

WORD = r"<[^<>\s]+>|\[\[|\]\]|[a-z]+|\d|[^\sa-z\d]"
CLEAR_STEP = 0.12  # of the width: closer things are not called left or right of each other
CLEAR_BORDER = 0.03  # of the width: nearer to the border of a third, a place is not asked for


def words(text: str) -> list[str]:
    """Words, punctuation marks and `<…>` tokens of a text, in lower case: what word-level tokenizers take."""
    return re.findall(WORD, text.lower())


def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark that this world can say, sorted; without the `<…>` tokens of boxes."""
    templates = chain.from_iterable(EDIT_TEMPLATES.values())
    said = [re.sub(r"\{\w+\}", "", template) for template in templates]
    said += [*SKIES, *GROUNDS, *KINDS, *COLOURS, *POSES, *PLACES, *PLURALS.values(), *NUMBERS]
    said += chain(*VERBS.values())
    return tuple(sorted(set(words(" ".join([_FUNCTION_WORDS, *said])))))


class Choices:
    """The only source of randomness of the grammar: uniform picks among distinct options, by a generator or seed, or
    always the first option. Any writer takes one in place of a generator; `log_probability` is then that of all picks
    so far, and so of the wording, given what it says."""

    def __init__(self, rng: np.random.Generator | int | None):
        self.rng = None if rng is None else np.random.default_rng(rng)
        self.log_probability = 0.0

    def pick(self, options: Iterable):
        distinct = tuple(dict.fromkeys(options))
        self.log_probability -= math.log(len(distinct))
        return distinct[0 if self.rng is None else int(self.rng.integers(len(distinct)))]


Rng = np.random.Generator | int | Choices | None


def _choices(rng: Rng) -> Choices:
    return rng if isinstance(rng, Choices) else Choices(rng)


def noun_phrase(thing: Thing, said: Collection[str] = ("colour",), article: str = "a") -> str:
    """`a waving person in a red shirt on the left`: a thing with what is `said` of pose, colour and place."""
    person = thing.kind == "person"
    front = [thing.pose] if person and "pose" in said else []
    front += [thing.colour] if "colour" in said and not person else []
    phrase = with_article(" ".join([*front, thing.kind]), article)
    if person and "colour" in said:
        phrase += f" in {with_article(thing.colour, article)} shirt"
    return phrase + (f" {PLACE_PHRASES[thing.place]}" if "place" in said else "")


def with_article(phrase: str, article: str = "a") -> str:
    """`phrase` behind `the`, or behind `a` or `an` as it sounds."""
    return f"{'an' if article == 'a' and phrase[0] in 'aeiou' else article} {phrase}"


def refer(scene: Scene, thing: Thing, avoid: Sequence[str] = ()) -> str | None:
    """The first of `references`; None if there is none."""
    return next(references(scene, thing, avoid), None)


def references(scene: Scene, thing: Thing, avoid: Sequence[str] = ()) -> Iterator[str]:
    """The phrases with `the` that fit this thing of the scene and no other, the shortest first.

    avoid: what a phrase must not give away, any of `colour`, `place`, `pose`.
    """
    avoid = avoid if is_place_clear(thing) else (*avoid, "place")
    allowed = [name for name in ("colour", "place", "pose") if name not in avoid]

    def fits(other: Thing, said: Sequence[str]) -> bool:
        agrees = {name: getattr(other, name) == getattr(thing, name) for name in ("kind", *said)}
        agrees["place"] = agrees.get("place", True) or abs(other.x - thing.x) < CLEAR_STEP
        return all(agrees.values())

    for said in chain.from_iterable(combinations(allowed, n) for n in range(len(allowed) + 1)):
        if sum(fits(other, said) for other in scene.things) == 1:
            yield noun_phrase(thing, said, "the")


def is_place_clear(thing: Thing) -> bool:
    """Whether a viewer would surely agree on left, middle or right."""
    return min(abs(thing.x - 1 / 3), abs(thing.x - 2 / 3)) >= CLEAR_BORDER


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _verb(thing: Thing, form: str) -> str:
    return form.format(s=VERBS[thing.pose][1], ing=thing.pose) if thing.pose else ""


_VERB_FORMS = (" {s}", " is {ing}")  # `waves`, `is waving`


MARK = "§"  # behind the words of a thing, with its number in `Scene.things`; no sentence has it otherwise


def _marked(phrase: str, scene: Scene, thing: Thing, marked: bool) -> str:
    return f"{phrase}{MARK}{scene.things.index(thing)}{MARK}" if marked else phrase


def unmarked(text: str) -> tuple[str, dict[int, int]]:
    """A marked text without its marks, and for each thing the number of words that end with its last one."""
    parts, ends, count = text.split(MARK), {}, 0
    for phrase, number in zip(parts[::2], parts[1::2], strict=False):
        count += len(words(phrase))
        ends[int(number)] = count
    return "".join(parts[::2]), ends


def full_caption(scene: Scene, rng: Rng, marked: bool = False) -> str:
    """Names everything that is scored: kind, colour, pose and place of each thing, sky and ground.

    Under 40 words for three things. Those of one third stay in reading order, so that the caption can be read back.
    marked: see `unmarked`.
    """
    choose = _choices(rng)
    order = choose.pick(permutations(dict.fromkeys(thing.place for thing in scene.from_left)))
    form = choose.pick(_VERB_FORMS) if any(thing.pose for thing in scene.things) else ""
    wording = choose.pick(("{thing} {place}", "{place} {thing}"))
    row = sorted(scene.from_left, key=lambda thing: order.index(thing.place))
    named = [wording.format(thing=noun_phrase(t) + _verb(t, form), place=PLACE_PHRASES[t.place]) for t in row]
    named = [_marked(phrase, scene, thing, marked) for phrase, thing in zip(named, row, strict=True)]
    ground, sky = f"on {GROUND_NAMES[scene.ground]}", SKY_PHRASES[scene.sky]
    background, things = choose.pick((f"{ground} {sky}", f"{sky} {ground}")), _listed(named)
    return choose.pick((f"{things}, {background}", f"{background}, {things}"))


def canonical_caption(scene: Scene) -> str:
    """The full caption in its first wording: from left to right, then ground and sky."""
    return full_caption(scene, None)


def partial_caption(scene: Scene, rng: Rng) -> str:
    """Leaves something open: some neighbours of the scene, without some of colour, pose, place, sky, ground. Two things
    may stand `beside` or `to the left of` each other."""
    choose = _choices(rng)
    row = scene.from_left
    count = choose.pick(range(len(row), 0, -1))
    start = choose.pick(range(len(row) - count + 1))
    shown = row[start : start + count]
    topics = ["colour", "ground", "sky", "place"] + ["pose"] * any(thing.pose for thing in shown)
    said = choose.pick(chain.from_iterable(combinations(topics, n) for n in reversed(range(len(topics)))))
    form = choose.pick(_VERB_FORMS) if "pose" in said else ""
    where = {place: f" {phrase}" for place, phrase in PLACE_PHRASES.items() if "place" in said}
    things = [noun_phrase(t, {"colour"} & {*said}) + _verb(t, form) + where.get(t.place, "") for t in shown]
    text = _listed(things)
    if count == 2 and "place" not in said:
        relations = ["{0} beside {1}", "{1} beside {0}", "{0} and {1}"]
        if shown[1].x - shown[0].x >= CLEAR_STEP:
            relations += ["{0} to the left of {1}", "{1} to the right of {0}"]
        text = choose.pick(relations).format(*things)
    background = [f"on {GROUND_NAMES[scene.ground]}"] * ("ground" in said)
    background += [SKY_PHRASES[scene.sky]] * ("sky" in said)
    return " ".join([text + "," * bool(where and background), *background])


def one_thing_caption(scene: Scene, rng: Rng) -> str:
    """One thing with colour and pose, nothing on where it stands or what else there is."""
    options = (noun_phrase(thing) + _verb(thing, form) for thing in scene.from_left for form in _VERB_FORMS)
    return _choices(rng).pick(options)


DETAILS = {"full": full_caption, "partial": partial_caption, "one_thing": one_thing_caption}


def caption(scene: Scene, detail: str, rng: Rng) -> str:
    """A caption of one of the `DETAILS`. Raises ValueError for another."""
    if detail not in DETAILS:
        raise ValueError(f"caption: detail is one of {', '.join(DETAILS)}, got {detail!r}")
    return DETAILS[detail](scene, rng)


def box_to_tokens(box: Sequence[float]) -> str:
    """A box (left, top, right, bottom as fractions) as `<box_start>…<box_end>`, cut at the frame.

    Centre, width and height are rounded to 1/224; 1 itself becomes 223/224, the last token. Raises ValueError for an
    empty or infinite box, or one outside the picture.
    """
    if len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise ValueError(f"box_to_tokens: left, top, right, bottom as finite fractions expected, got {tuple(box)}")
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in box)
    if not (left < right and top < bottom):
        raise ValueError(f"box_to_tokens: nothing of the box {tuple(box)} lies inside the picture")
    numbers = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    tokens = (LOCATION_TOKENS[min(LOCATIONS - 1, round(number * LOCATIONS))] for number in numbers)
    return f"{BOX_START}{''.join(tokens)}{BOX_END}"


def tokens_to_box(text: str) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) that `box_to_tokens` wrote, rounded to half of 1/224. Raises ValueError for
    anything but one box of four known location tokens."""
    match = _BOX.fullmatch(text.strip())
    numbers = [int(number) for number in re.findall(r"\d+", match[1])] if match else []
    if len(numbers) != 4 or max(numbers) >= LOCATIONS:
        wanted = f"{BOX_START}, four of <loc-0> to <loc-{LOCATIONS - 1}>, {BOX_END}"
        raise ValueError(f"not a box: {text!r}; expected {wanted}")
    x, y, width, height = (number / LOCATIONS for number in numbers)
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def find_boxes(text: str) -> tuple[tuple[float, float, float, float], ...]:
    """All boxes in a text, in order. Raises ValueError if one is malformed."""
    return tuple(tokens_to_box(match[0]) for match in _ANY_BOX.finditer(text))


def grounded_description(scene: Scene, rng: Rng, marked: bool = False) -> str:
    """A caption in which ` [[ box ]]` follows each thing and no place is said; things in random order. marked: see
    `unmarked`."""
    choose = _choices(rng)
    things, rest = [], list(scene.from_left)
    form = choose.pick(_VERB_FORMS) if any(thing.pose for thing in rest) else ""
    while rest:
        thing = rest.pop(choose.pick(range(len(rest))))
        phrase = f"{noun_phrase(thing)}{_verb(thing, form)} [[ {box_to_tokens(scene.box(thing))} ]]"
        things.append(_marked(phrase, scene, thing, marked))
    return f"{_listed(things)}, on {GROUND_NAMES[scene.ground]} {SKY_PHRASES[scene.sky]}"


def detections(scene: Scene, rng: Rng = None) -> tuple[tuple[str, str], ...]:
    """(prompt, answer) per thing that has a phrase: `the car [[ <box_start>` and `<loc-…>…<box_end> ]]`; any of its
    phrases, or without a generator the shortest."""
    pairs, choose = [], _choices(rng)
    for thing in scene.from_left:
        if phrases := list(references(scene, thing)):
            phrase = choose.pick(phrases)
            answer = box_to_tokens(scene.box(thing)).removeprefix(BOX_START) + " ]]"
            pairs.append((DETECTION_PROMPT.format(caption=phrase), answer))
    return tuple(pairs)
