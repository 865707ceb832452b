"""Questions about a simulated scene with answers that follow from its class map and objects.

The tasks are those of EarthMind-Bench: multiple choice (existence, hallucination, scene, counting, spatial relation),
referring segmentation, and open ones (caption, region, route, disaster, urban). Multiple choice answers are the full
text of an option, ``"B. yes"``; ``QA.prompt`` is the question with its options in lines below, as the benchmark asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from earthmind_jax.config import one_of
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.simulate.layout import Instance
from earthmind_jax.data.simulate.materials import OBJECTS, STUFF, Cover
from earthmind_jax.data.simulate.open_questions import caption, disaster, region, route, urban
from earthmind_jax.data.simulate.qa import MIN_SHARE, NOUNS, QA, have, place_in_words, sensors_for
from earthmind_jax.data.simulate.scene import Scene

ASKED_SHARE = 0.05  # of the image: areas smaller than this are not to be segmented
COUNT_RANGE = range(1, 9)  # numbers that are asked for
SCENES = {
    "an airport": Cover.ASPHALT, "a residential area": Cover.BUILDING, "open water": Cover.WATER,
    "forest": Cover.FOREST, "farmland": Cover.FIELD, "bare land": Cover.BARE, "grassland": Cover.GRASSLAND,
}  # fmt: skip


def _choices(rng: np.random.Generator, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Shuffled, lettered options and the full text of the right one."""
    texts = [right, *wrong]
    order = rng.permutation(len(texts))
    options = tuple(f"{chr(65 + i)}. {texts[j]}" for i, j in enumerate(order))
    return options, options[int(np.flatnonzero(order == 0)[0])]


def _absent(scene: Scene) -> list[Cover]:
    return [cover for cover in Cover if scene.fractions[cover] == 0]


def _present(scene: Scene) -> list[Cover]:
    """Classes nobody could overlook: objects, and areas of at least 2 %."""
    return [c for c in Cover if scene.fractions[c] >= (MIN_SHARE if c in STUFF else 1e-9)]


def _yes_no(scene: Scene, rng: np.random.Generator, task: str, questions: Sequence[str], likely: bool) -> QA | None:
    """Answers are yes and no half of the time each; ``likely`` picks absent classes that fit the scene."""
    present, absent = _present(scene), _absent(scene)
    if not present or not absent:
        return None
    yes = rng.random() < 0.5
    pool = present if yes else absent
    if not yes and likely:
        pool = [c for c in absent if c in (Cover.SHIP, Cover.BRIDGE, Cover.BUILDING, Cover.ROAD, Cover.WATER)] or absent
    cover = pool[int(rng.integers(len(pool)))]
    options, answer = _choices(rng, "yes" if yes else "no", ["no" if yes else "yes"])
    question = questions[int(rng.integers(len(questions)))].format(have(cover))
    return QA(task, question, answer, options, needs=sensors_for(scene, cover))


def existence(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Is a class there? Balanced between yes and no."""
    return _yes_no(scene, rng, "object_existence", ("Is there {} in the image?", "Does the image show {}?"), False)


def hallucination(scene: Scene, rng: np.random.Generator) -> QA | None:
    """The same with a leading question, and absent classes that one would expect to see."""
    asked = ("You can see {} in the image, can you not?", "Can {} be seen anywhere in this image?")
    return _yes_no(scene, rng, "hallucination_detection", asked, True)


def scene_kind(scene: Scene) -> str | None:
    """The kind of place that a scene came out as, from shares of the image; None where nothing prevails."""
    share = scene.fractions
    if scene.layout.theme == "airport" and share[Cover.ASPHALT] >= 0.05:
        return "an airport"
    if share[Cover.BUILDING] >= 0.06:
        return "a residential area"
    cover = max(STUFF, key=lambda c: share[c])
    return next((kind for kind, c in SCENES.items() if c == cover and cover != Cover.ASPHALT and share[c] >= 0.4), None)


def classification(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What kind of place is it? Four options; kinds whose class covers much of the image are never the wrong ones."""
    kind = scene_kind(scene)
    if kind is None:
        return None
    wrong = [other for other, cover in SCENES.items() if other != kind and scene.fractions[cover] < 0.2]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))[:3]]
    options, answer = _choices(rng, kind, wrong)
    questions = ("What kind of scene is this?", "Which option best describes the scene in the image?")
    question = questions[int(rng.integers(2))]
    return QA("scene_classification", question, answer, options, needs=sensors_for(scene, SCENES[kind]))


def counting(scene: Scene, rng: np.random.Generator, choice: bool | None = None) -> QA | None:
    """How many ships, buildings or bridges (1 to 8)? As four options or as a number."""
    counts = scene.layout.counts
    pool = [cover for cover, count in counts.items() if count in COUNT_RANGE]
    if not pool:
        return None
    # low numbers, and so bridges, are the most frequent: the rarer number is asked for more often
    weight = np.array([counts[cover] for cover in pool], float)
    cover = pool[int(rng.choice(len(pool), p=weight / weight.sum()))]
    count = counts[cover]
    question = f"How many {NOUNS[cover][1]} are there in the image?"
    needs = sensors_for(scene, cover)
    if choice is False or (choice is None and rng.random() < 0.3):
        return QA("object_counting", question, str(count), needs=needs)
    low = max(0, count - int(rng.integers(4)))  # the right number is at any place among the four
    wrong = [str(n) for n in range(low, low + 4) if n != count]
    options, answer = _choices(rng, str(count), wrong)
    return QA("object_counting", question, answer, options, needs=needs)


def spatial(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Where does one thing lie from another (left, right, above, below)? Only pairs that clearly lie so."""
    share, centre, spread = _extents(scene)
    things = [
        c for c in Cover if (c in OBJECTS and scene.layout.counts[c]) or (c in STUFF and share[c] >= MIN_SHARE)
    ]  # fmt: skip
    distance = centre[:, None] - centre[None]  # from the second to the first, as fractions of the image
    apart = np.abs(distance)
    clear = (apart > 0.2) & (apart > 0.9 * (spread[:, None] + spread[None])) & (apart[..., ::-1] < 0.5 * apart)
    pairs = [(i, j, int(clear[i, j, 1])) for i in things for j in things if i != j and clear[i, j].any()]
    if not pairs:
        return None
    first, second, axis = pairs[int(rng.integers(len(pairs)))]
    directions = (("above", "below"), ("to the left", "to the right"))
    right = directions[axis][int(distance[first, second, axis] > 0)]
    options, answer = _choices(rng, right, [word for pair in directions for word in pair if word != right])
    several = [c == Cover.FIELD or scene.layout.counts.get(c, 1) > 1 for c in (first, second)]
    one, other = NOUNS[Cover(first)][several[0]], NOUNS[Cover(second)][several[1]]
    verb = "are" if several[0] else "is"
    both = set(sensors_for(scene, first)) & set(sensors_for(scene, second))
    return QA(
        "spatial_relationship", f"Where {verb} the {one} relative to the {other} in the image?", answer, options,
        needs=tuple(s for s in ("optical", "sar") if s in both),
    )  # fmt: skip


def _extents(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class: share of the image [11], centre and standard deviation [11 2] (row, column), in image sizes."""
    share, labels = scene.fractions, scene.class_map.ravel()
    number = np.maximum(1, share * labels.size)[:, None]
    y, x = np.indices(scene.shape, dtype=np.float32)
    at = ((y.ravel() + 0.5) / scene.shape[0], (x.ravel() + 0.5) / scene.shape[1])
    centre = np.stack([np.bincount(labels, p, minlength=len(share)) for p in at], 1) / number
    square = np.stack([np.bincount(labels, p * p, minlength=len(share)) for p in at], 1) / number
    return share, centre, np.sqrt(np.maximum(square - centre**2, 0.0))


def segmentation(scene: Scene, rng: np.random.Generator, cover: int | None = None, absent: float = 0.15) -> QA | None:
    """Segment a class; with chance ``absent`` one that is not there, which is answered without ``[SEG]``.

    Args:
      cover: the class to ask for (then ``absent`` does not apply), or None to draw one that covers 5 % at least.
    """
    if cover is None and rng.random() < absent and (pool := _absent(scene)):
        missing = pool[int(rng.integers(len(pool)))]
        question = SEGMENTATION_QUESTIONS[int(rng.integers(len(SEGMENTATION_QUESTIONS)))]
        answer = f"There is no {NOUNS[missing][0]} in this image."
        question = question.format(c=NOUNS[missing][1])
        return QA("referring_segmentation", question, answer, needs=sensors_for(scene, missing))
    if cover is None:
        pool = [c for c in (*STUFF, Cover.BUILDING) if scene.fractions[c] >= ASKED_SHARE]
        if not pool:
            return None
        cover = pool[int(rng.integers(len(pool)))]
    cover = Cover(cover)
    mask = scene.mask(cover)
    return _ask_mask(scene, rng, "referring_segmentation", cover, mask, NOUNS[cover][1]) if mask.any() else None


def absent_segmentation(scene: Scene, rng: np.random.Generator, chance: float = 0.5) -> QA | None:
    """Segment a class that is not there, and draw nothing: an empty mask, in the form of one that is there.

    ``segmentation`` answers so without ``[SEG]``, as published; but where a mask is drawn in spite of it, the mask
    decoder must have seen that a mask can be empty. With ``chance`` alone, so that most masks are of what is there.
    """
    pool = _absent(scene)
    if not pool or rng.random() >= chance:
        return None
    cover = pool[int(rng.integers(len(pool)))]
    return _ask_mask(scene, rng, "absent_segmentation", cover, scene.mask(cover), NOUNS[cover][1])


def object_segmentation(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Segment one single object, "the ship in the upper left"."""
    single = _located_object(scene, rng)
    if single is None:
        return None
    thing, phrase = single
    return _ask_mask(scene, rng, "object_segmentation", Cover(thing.cover), thing.mask, phrase)


def _ask_mask(scene: Scene, rng: np.random.Generator, task: str, cover: Cover, mask: np.ndarray, phrase: str) -> QA:
    question = SEGMENTATION_QUESTIONS[int(rng.integers(len(SEGMENTATION_QUESTIONS)))].format(c=phrase)
    # The published grounded-caption form: with the name right before its [SEG], it is quick to learn which is meant.
    return QA(task, question, f"<p> {phrase} </p> [SEG].", mask=mask, needs=sensors_for(scene, cover))


def _located_object(scene: Scene, rng: np.random.Generator) -> tuple[Instance, str] | None:
    """An object that is the only one of its class, or of its class in its part of the image, and how to call it."""
    objects = scene.layout.things
    named = [(NOUNS[o.cover][0], place_in_words(o.bbox, scene.shape)) for o in objects]
    alone = [i for i, name in enumerate(named) if named.count(name) == 1]
    if not alone:
        return None
    pick = alone[int(rng.integers(len(alone)))]
    noun, place = named[pick]
    single = sum(other == noun for other, _ in named) == 1
    return objects[pick], noun if single and rng.random() < 0.5 else f"{noun} {place}"


TASKS: dict[str, Callable[[Scene, np.random.Generator], QA | None]] = {
    "object_existence": existence,
    "hallucination_detection": hallucination,
    "scene_classification": classification,
    "object_counting": counting,
    "spatial_relationship": spatial,
    "referring_segmentation": segmentation,
    "object_segmentation": object_segmentation,
    "caption": caption,
    "region_description": region,
    "route": route,
    "disaster": disaster,
    "urban": urban,
}
TRAINING = {"absent_segmentation": absent_segmentation}  # no questions of the benchmark: asked for by name alone


def make_questions(
    scene: Scene, rng: np.random.Generator, tasks: Sequence[str] | None = None, *, lettered: bool = True
) -> list[QA]:
    """One question for each task that the scene has an answer to, in the order given (all tasks by default).

    A task that is named several times gives different questions: one whose answer was given before is left out.

    Args:
      lettered: multiple choice with lettered options; else the bare question, to be answered in a word or a few.

    Raises:
      UserError: for an unknown task.
    """
    tasks = tuple(TASKS) if tasks is None else tuple(tasks)
    known = TASKS | TRAINING
    for task in tasks:
        one_of("task", task, tuple(known))
    found: list[QA] = []
    for task in tasks:
        qa = known[task](scene, rng)
        if qa is not None and not any(qa.task == q.task and qa.answer == q.answer for q in found if q.mask is not None):
            found.append(qa)
    return found if lettered else [open_form(qa) for qa in found]


def open_form(qa: QA) -> QA:
    """The question without its options; the answer without its letter."""
    return qa if qa.options is None else replace(qa, options=None, answer=qa.answer.partition(". ")[2])
