"""What a file name says that its tensors cannot: which expert it holds, and whether it is distilled to few steps."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

HIGH, LOW = "high", "low"
# high_noise, HighNoise, -HIGH_, high_noise_model, i2vHigh; not "flow", "highres", "slow" or "LowVRAM"
EXPERT_WORD = re.compile(
    r"(?:(?<![a-z])|(?<=[a-z0-9])(?=(?-i:High|Low)))(high|low)(?=[-_. ]?noise|(?![a-z]))", re.IGNORECASE
)
EXPERT_LETTER = re.compile(r"(?<=[-_])([hl])(?=[-_.])", re.IGNORECASE)
DISTILLED = re.compile(
    r"lightx2v|lightning|distill|causvid|accvid|fusionx|self[-_ ]?forcing|turbo|(?<!\d)[1-8][-_ ]?steps?(?![a-z])|"
    r"fastwan|(?<![a-z])(rcm|dmd|lcm)(?![a-z])",
    re.IGNORECASE,
)
WAN_21 = re.compile(r"wan[-_ ]?2[._]?1(?![\d])", re.IGNORECASE)
SECOND = "transformer_2"  # what diffusers calls the low-noise expert; models of one expert have a `transformer` too
OTHER_FOLDER = {"transformer": "transformer_2", "transformer_2": "transformer"}
OTHER = {"high": "low", "low": "high", "h": "l", "l": "h"}


def expert_of(name: str) -> str | None:
    """Returns "high" or "low" if the file name says so, else its folder; None if neither does or both words occur."""
    if PurePath(name.replace("\\", "/")).name == SECOND:
        return LOW
    for part in reversed(PurePath(name.replace("\\", "/")).parts[-2:]):
        for pattern in (EXPERT_WORD, EXPERT_LETTER):
            found = {match[1].lower() for match in pattern.finditer(part)}
            if len(found) == 1:
                return {"h": HIGH, "l": LOW}.get(word := found.pop(), word)
            if found:
                return None
    return None


def expert_at(path: Path) -> str | None:
    """As expert_of, of a file or folder on the disk: the folder `transformer` is high beside a second one."""
    for place in (path, path.parent):
        if place.name == SECOND:
            return LOW
        if place.name == OTHER_FOLDER[SECOND] and (place.parent / SECOND).is_dir():
            return HIGH
    return expert_of(f"{path.parent.name}/{path.name}")


def partner_names(name: str) -> tuple[str, ...]:
    """Names that the other expert's file would have: in the same folder, and in the folder named after it."""
    folder, slash, base = name.replace("\\", "/").rpartition("/")
    swapped = _swap(base)
    same_folder = folder + slash + swapped
    other_folder = _swap(folder) + slash + swapped
    return tuple(dict.fromkeys(found for found in (same_folder, other_folder) if found != name.replace("\\", "/")))


def is_wan21(name: str) -> bool:
    """True if the name says Wan 2.1, and not which expert of a pair it is."""
    return bool(WAN_21.search(name)) and expert_of(name) is None


def is_distilled(name: str) -> bool:
    """True if the name says that a model or LoRA needs a few steps only."""
    return bool(DISTILLED.search(name))


def _swap(text: str) -> str:
    if text in OTHER_FOLDER:
        return OTHER_FOLDER[text]
    pattern = EXPERT_WORD if EXPERT_WORD.search(text) else EXPERT_LETTER
    return pattern.sub(lambda match: _like(OTHER[match[1].lower()], match[1]), text)


def _like(word: str, model: str) -> str:
    """The word in the capitals of the model: HIGH -> LOW, High -> Low."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
