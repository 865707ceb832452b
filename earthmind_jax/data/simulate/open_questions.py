"""Open questions about a simulated scene: caption, region, route, disaster, town. One or two plain sentences each."""

from __future__ import annotations

import numpy as np

from earthmind_jax.data.simulate.materials import MATERIALS, NAMES, OBJECTS, STUFF, Cover
from earthmind_jax.data.simulate.noise import dilate
from earthmind_jax.data.simulate.qa import MIN_SHARE, NOUNS, QA, list_words, place_in_words, sensors_for
from earthmind_jax.data.simulate.scene import Scene

CAPTION_QUESTIONS = (
    "Describe the image in one sentence.", "Write a short caption for this image.", "What does the image show?",
)  # fmt: skip
REGION_QUESTIONS = (
    "Please give me a short description of the region in the picture marked by {region}.",
    "What is in {region}?",
    "Can you tell me in a few words what {region} shows?",
)


def caption(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Areas of at least 5 %, the largest first, and the objects on them."""
    share = scene.fractions
    areas = sorted((c for c in STUFF if share[c] >= 0.05), key=lambda c: -share[c])
    if not areas:
        return None
    extras = []
    for cover in (Cover.ROAD, *OBJECTS):
        if share[cover] > 0:
            one = cover in OBJECTS and scene.layout.counts[cover] == 1
            extras.append(f"a {NOUNS[cover][0]}" if one else NOUNS[cover][1])
    words = list_words([NOUNS[c][1] for c in areas[:3]])
    text = f"An area of {words}" + (f" with {list_words(extras)}." if extras else ".")
    question = CAPTION_QUESTIONS[int(rng.integers(len(CAPTION_QUESTIONS)))]
    needs = [set(sensors_for(scene, c)) for c in areas[:3]]
    return QA("caption", question, text, needs=tuple(s for s in ("optical", "sar") if all(s in n for n in needs)))


def region(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What is in a marked region: one class of area within a random window, or one object."""
    objects = scene.layout.things
    if objects and rng.random() < 0.3:
        thing = objects[int(rng.integers(len(objects)))]
        return QA("region_description", _ask_region(rng), f"A {NOUNS[thing.cover][0]}.", region=thing.mask,
                  needs=sensors_for(scene, thing.cover))  # fmt: skip
    pool = [c for c in STUFF if scene.fractions[c] >= MIN_SHARE]
    if not pool:
        return None
    cover = pool[int(rng.integers(len(pool)))]
    rows, columns = np.nonzero(scene.class_map == cover)
    pick = int(rng.integers(rows.size))
    row, column, reach = int(rows[pick]), int(columns[pick]), max(4, min(scene.shape) // 6)
    mask = np.zeros(scene.shape, bool)
    window = (slice(max(0, row - reach), row + reach + 1), slice(max(0, column - reach), column + reach + 1))
    mask[window] = scene.class_map[window] == cover
    # the commonest material of the region gives the words
    material = int(np.bincount(scene.layout.material[scene.layout.region[mask]]).argmax())
    words = MATERIALS[NAMES[material]].words
    return QA("region_description", _ask_region(rng), f"{words[0].upper()}{words[1:]}.", region=mask,
              needs=sensors_for(scene, cover))  # fmt: skip


def _ask_region(rng: np.random.Generator) -> str:
    return REGION_QUESTIONS[int(rng.integers(len(REGION_QUESTIONS)))]


def route(scene: Scene, rng: np.random.Generator) -> QA | None:
    """How to cross the water."""
    if scene.fractions[Cover.WATER] < MIN_SHARE:
        return None
    bridges = [thing for thing in scene.layout.things if thing.cover == Cover.BRIDGE]
    question = ("Where can a car cross the water?", "How could I get across the water by road?")[int(rng.integers(2))]
    if not bridges:
        answer = "There is no bridge in this image, so the water cannot be crossed by road here."
    else:
        places = sorted({place_in_words(thing.bbox, scene.shape) for thing in bridges})
        one = len(bridges) == 1
        answer = f"By the bridge{'' if one else 's'} {list_words(places)} of the image."
    return QA("route", question, answer, needs=sensors_for(scene, Cover.BRIDGE))


def disaster(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What a flood would reach first: what lies along the water."""
    water = scene.class_map == Cover.WATER
    if water.mean() < MIN_SHARE:
        return None
    near = dilate(water, max(1, min(scene.shape) // 21)) & ~water
    counts = np.bincount(scene.class_map[near], minlength=11)
    flooded = (Cover.BUILDING, Cover.FIELD, Cover.ASPHALT, Cover.ROAD, Cover.FOREST, Cover.GRASSLAND, Cover.BARE)
    found = [c for c in flooded if counts[c] >= max(3, 0.1 * near.sum())]
    if not found:
        return None
    questions = ("What would be flooded first if the water rose?", "Which areas are at risk in a flood?")
    question = questions[int(rng.integers(2))]
    answer = f"The {list_words([NOUNS[c][1] for c in found[:3]])} along the water."
    return QA("disaster", question, answer, needs=sensors_for(scene, Cover.WATER))


def urban(scene: Scene, rng: np.random.Generator) -> QA | None:
    """How much is built up, and where."""
    question = ("Describe the built-up area.", "How densely is this area built up?")[int(rng.integers(2))]
    count = scene.layout.counts[Cover.BUILDING]
    needs = sensors_for(scene, Cover.BUILDING)
    if not count:
        return QA("urban", question, "There are no buildings in this image.", needs=needs)
    rows, columns = np.nonzero(scene.class_map == Cover.BUILDING)
    middle = (int(columns.mean()), int(rows.mean()), int(columns.mean()) + 1, int(rows.mean()) + 1)
    share = 100 * scene.fractions[Cover.BUILDING]
    density = "sparse" if share < 2 else "loose" if share < 6 else "dense"
    number = "one building" if count == 1 else f"{count} buildings" if count <= 8 else "many buildings"
    place = place_in_words(middle, scene.shape)
    many = count > 1
    answer = f"It is {density}: there {'are' if many else 'is'} {number}, {'mostly ' if many else ''}{place}."
    return QA("urban", question, answer, needs=needs)
