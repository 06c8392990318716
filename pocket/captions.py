"""Sentences for the scenes of the pocket world, in the manner of the official prompt guide.

Subject, scene and motion in a sentence, then or before it a few terms of light and camera. The words are shared; a few
forms of sentence (`held_out=True`) are kept out of training, so that tests ask in a way that was never seen.
Source of the light and camera terms: the lists in Wan-Video/Wan2.2 wan/utils/system_prompt.py at 42bf4cf.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import BACKGROUNDS, CAMERAS, COLORS, DIRECTIONS, LIGHTS, SHAPES, SIZES, SPEEDS, Scene, Thing

SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball", "round shape"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "cross": ("cross", "plus sign"),
}
COLOR_WORDS = {
    "red": ("red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "royal blue"),
    "purple": ("purple", "purple", "violet"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SPEED_WORDS = {"slow": ("slowly", "gently", "at a calm pace"), "fast": ("quickly", "fast", "swiftly")}
VERBS = ("moves", "slides", "drifts", "glides", "travels", "floats", "flies", "rolls")
DIRECTION_WORDS = {
    "right": ("to the right", "from left to right", "rightwards", "towards the right side"),
    "left": ("to the left", "from right to left", "leftwards", "towards the left side"),
    "up": ("up", "upwards", "from bottom to top", "towards the top"),
    "down": ("down", "downwards", "from top to bottom", "towards the bottom"),
}
GROUND_WORDS = ("background", "backdrop", "ground", "floor", "scene")
BACKGROUND_WORDS = {
    "black": ("black", "dark"),
    "grey": ("grey", "gray"),
    "white": ("white",),
    "beige": ("beige", "sandy"),
    "sky blue": ("sky blue", "pale blue"),
}
LIGHT_WORDS = {
    "day": ("day time", "daylight", "sunny lighting"),
    "night": ("night time", "moonlight", "at night"),
    "side left": ("side lighting from the left", "light from the left"),
    "side right": ("side lighting from the right", "light from the right"),
}
CAMERA_WORDS = {
    "fixed": ("fixed camera", "static shot", "the camera holds still"),
    "pan left": ("camera pans left", "the camera pans to the left"),
    "pan right": ("camera pans right", "the camera pans to the right"),
    "zoom in": ("camera pushes in", "the camera zooms in"),
    "zoom out": ("camera pulls back", "the camera zooms out"),
}
LEFT_OUT = 0.35  # share of the training captions that say nothing of one optional attribute
LEFT_OUT_CORE = 0.06  # the same for shape, colour and direction


@dataclass(frozen=True)
class Caption:
    """A text and what it says: {attribute: index of its value}, an attribute that it leaves out is missing."""

    text: str
    told: dict[str, int]


THING_ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "direction": DIRECTIONS, "size": SIZES, "speed": SPEEDS}
ATTRIBUTES = {  # every attribute that a caption can tell, and its values
    **{f"{name} {k}": values for k in (1, 2) for name, values in THING_ATTRIBUTES.items()},
    "background": tuple(BACKGROUNDS),
    "light": tuple(LIGHTS),
    "camera": CAMERAS,
}


@dataclass(frozen=True)
class _Words:
    """What a caption says of one thing."""

    subject: str
    name: str  # of the shape alone
    motion: str
    told: dict[str, int]


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _words(
    rng: np.random.Generator,
    number: int,
    thing: Thing,
    *,
    complete: bool,
    deeds: tuple[str, ...] = (),
    unsaid: tuple[str, ...] = (),
) -> _Words:
    """Words for thing `number` (1 or 2); `complete` names shape, colour and direction always.

    For `deeds` and `unsaid` see caption.
    """
    words = {"shape": SHAPE_WORDS, "color": COLOR_WORDS, "direction": DIRECTION_WORDS}
    words |= {"size": SIZE_WORDS, "speed": SPEED_WORDS}
    said, told = {}, {}
    for name, values in THING_ATTRIBUTES.items():
        if deeds and name in ("direction", "speed"):
            continue
        share = LEFT_OUT if name in ("size", "speed") else 0.0 if complete else LEFT_OUT_CORE
        value = getattr(thing, name)
        if rng.uniform() >= share and name not in unsaid:
            said[name] = _pick(rng, words[name][value])
            told[f"{name} {number}"] = values.index(value)
    subject = " ".join(part for part in (said.get("size"), said.get("color"), said.get("shape", "shape")) if part)
    deed = _pick(rng, deeds or VERBS)
    motion = " ".join(part for part in (deed, said.get("direction"), said.get("speed")) if part)
    return _Words(_article(subject), said.get("shape", "shape"), motion, told)


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    held_out: bool = False,
    complete: bool = False,
    deeds: tuple[str, ...] = (),
    unsaid: tuple[str, ...] = (),
) -> Caption:
    """One sentence or two for the scene; optional attributes are left out at random.

    `held_out` uses the forms of sentence that training never sees; `complete` names colour, shape and direction of
    every thing, as prompts that are judged have to. `deeds` are what things do that do not move; of the attributes in
    `unsaid` nothing is ever said.
    """
    things = [
        _words(rng, number, thing, complete=complete, deeds=deeds, unsaid=unsaid)
        for number, thing in enumerate(scene.things, 1)
    ]
    told = {name: value for thing in things for name, value in thing.told.items()}
    place, terms = "", []
    if rng.uniform() >= LEFT_OUT and "background" not in unsaid:
        told["background"] = list(BACKGROUNDS).index(scene.background)
        place = f"{_pick(rng, BACKGROUND_WORDS[scene.background])} {_pick(rng, GROUND_WORDS)}"
    for name, value, words in (("light", scene.light, LIGHT_WORDS), ("camera", scene.camera, CAMERA_WORDS)):
        if rng.uniform() >= LEFT_OUT and name not in unsaid:
            told[name] = ATTRIBUTES[name].index(value)
            terms.append(_pick(rng, words[value]))
    make = _held_out_form if held_out else _training_form
    text = " ".join(make(rng, things, place, terms).split())
    text = text[0].upper() + text[1:]
    if rng.uniform() < 0.15:
        text = text.lower()
    return Caption(text.rstrip(".") if rng.uniform() < 0.15 else text, told)


def _training_form(rng: np.random.Generator, things: list[_Words], place: str, terms: list[str]) -> str:
    first, where = things[0], _pick(rng, ("on", "against", "over", "in front of"))
    ground = f" {where} {_article(place)}" if place else ""
    form = int(rng.integers(16))
    if len(things) > 1:
        joint = _pick(rng, ("and", "while", "as"))
        core = f"{first.subject} {first.motion} {joint} {things[1].subject} {things[1].motion}{ground}."
    elif form == 0:
        core = f"{first.subject} {first.motion}{ground}."
    elif form == 1:
        core = f"{first.subject}{ground} {first.motion}."
    elif form == 2:
        core = f"There is {first.subject}{ground}. It {first.motion}."
    elif form == 3:
        core = f"{ground.strip()}{',' if ground else ''} {first.subject} {first.motion}."
    elif form == 4:
        lead = _pick(rng, ("A clip of", "A shot of", "The video shows", "You see"))
        core = f"{lead} {first.subject} that {first.motion}{ground}."
    elif form == 5:
        core = f"This is {first.subject}, and it {first.motion}{ground}."
    elif form == 6:
        core = f"{place or 'plain scene'}. {first.subject} {first.motion}."
    elif form == 7:
        core = f"With {_article(place or 'plain scene')} behind it, {first.subject} {first.motion}."
    elif form == 8:
        core = f"{_article(place or 'scene')}, before which {first.subject} {first.motion}."
    elif form == 9:
        core = f"We watch how {first.subject} {first.motion}{ground}."
    elif form == 10:
        core = f"{first.subject}, and with it {_article(place or 'plain scene')}: it {first.motion}."
    elif form == 11:
        core = f"{_article(place or 'plain scene')} and {first.subject} that {first.motion}."
    elif form == 12:
        core = f"In this shot {first.subject} {first.motion}{ground}."
    elif form == 13:
        core = f"{first.subject}, which stands{ground or ' alone'} at first, then {first.motion}."
    elif form == 14:
        core = f"Look at {first.subject}{ground}, how it {first.motion}."
    else:
        core = f"{ground.strip() or 'here'} we have {first.subject}. The {first.name} {first.motion}."
    core = core[0].upper() + core[1:] if core[0] != " " else core[1:]
    if not terms:
        return core
    joined = _pick(rng, (", ", ", ", "; ", " and ")).join(terms)
    order = rng.uniform()
    if order < 0.4:
        return f"{joined}. {core}"
    if order < 0.6:
        return f"{core.rstrip('.')}, {joined}."
    if order < 0.7:
        return f"{core.rstrip('.')}, with {joined}."
    return f"{core} {joined[0].upper()}{joined[1:]}."


def _held_out_form(rng: np.random.Generator, things: list[_Words], place: str, terms: list[str]) -> str:
    ground = f" before {_article(place)}" if place else ""
    form = int(rng.integers(3))
    told = [f"{thing.subject}, which {thing.motion}" for thing in things]
    if form == 0:
        core = f"We see {' and '.join(told)}{ground}"
    elif form == 1:
        core = f"{_article(place) if place else 'a scene'} with {' and '.join(told)}"
    else:
        core = f"{', '.join(f'{thing.subject} {thing.motion}' for thing in things)}{ground}"
    return f"{core}{', ' if terms else ''}{' and '.join(terms)}."
