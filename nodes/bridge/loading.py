"""Which files a loader takes: `auto` resolved, and everything checked by headers before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from ...wan_core.errors import WeightsFileError, WrongModelError
from ...wan_core.weights import Checkpoint, check_pair, check_text_encoder, check_vae, inspect, require
from ...wan_core.weights.downloads import with_address
from ...wan_core.weights.families import TEXT_ENCODER, VAE
from ...wan_core.weights.names import LOW, expert_of, partner_names
from ...wan_core.weights.pairing import place
from .files import Stamp, choices, path_of, stamp_of
from .model import check_model_file
from .whole import check_whole

AUTO, NONE = "auto", "none"
MODELS, TEXT_ENCODERS, VAES, LORAS = "diffusion_models", "text_encoders", "vae", "loras"
LISTED = 8  # file names in an error

Check = Callable[[Checkpoint, Checkpoint], None]  # (model, part); raises where they do not fit


@dataclass(frozen=True)
class Selection:
    """The files of one run; `low` is None for a model of one expert."""

    high: Checkpoint
    low: Checkpoint | None
    text_encoder: Checkpoint
    vae: Checkpoint

    def report(self) -> str:
        """What auto came to, one line per file."""
        low = self.low.name if self.low else "none, one expert"
        is_one_of_two = self.high.task is not None and self.high.task.boundary is not None
        if self.low is None and is_one_of_two and self.high.expert is None:
            low = (
                "none, as the name of the model says neither high nor low; if it has a partner, choose it as low_model"
            )
        return f"low: {low}\ntext encoder: {self.text_encoder.name}\nVAE: {self.vae.name}"


def select(model: str, low_model: str, text_encoder: str, vae: str) -> Selection:
    """Returns the files that the widgets of Wan Load Models mean, all checked against each other.

    Raises:
        WeightsFileError: a file is not readable as weights.
        WrongModelError: a file is of another kind or does not fit the model, or auto finds none or several.
    """
    high = model_file(model)
    low_name = _low_name(model, high) if low_model == AUTO else None if low_model == NONE else low_model
    low = model_file(low_name) if low_name else None
    if low is not None:
        check_pair(high, low)
    return Selection(
        high,
        low,
        _part(TEXT_ENCODERS, text_encoder, TEXT_ENCODER, high, check_text_encoder),
        _part(VAES, vae, VAE, high, check_vae),
    )


def model_file(name: str) -> Checkpoint:
    """Inspects a diffusion model of the models folder.

    Raises:
        WeightsFileError, WrongModelError: it is none that the pack runs.
    """
    path = path_of(MODELS, name)
    checkpoint = _inspected(path, stamp_of(path))
    check_model_file(checkpoint)
    return checkpoint


def partner_of(folder: str, name: str) -> str | None:
    """Returns the listed file that holds the other expert, by name; None if there is none."""
    listed = {other.replace("\\", "/"): other for other in choices(folder)}
    return next((listed[partner] for partner in partner_names(name) if partner in listed), None)


def stamp(folder: str, name: str | None) -> tuple[str, Stamp]:
    """The name and what its files are like now, so that a replaced one is read again; nothing where there is none.

    `name` is None for a widget that is linked, which has no value yet.
    """
    try:
        return name or "", stamp_of(path_of(folder, name)) if name else ()
    except WeightsFileError:
        return name or "", ()


def stamps(
    model: str | None, low_model: str | None, text_encoder: str | None, vae: str | None
) -> tuple[tuple[str, Stamp], ...]:
    """The stamps of all files that the widgets of Wan Load Models mean; those of auto too, where it finds them."""
    if model and low_model and text_encoder and vae and AUTO in (low_model, text_encoder, vae):
        with suppress(WeightsFileError, WrongModelError):
            chosen = select(model, low_model, text_encoder, vae)
            files = (chosen.high, chosen.low, chosen.text_encoder, chosen.vae)
            return tuple((str(file.path), stamp_of(str(file.path))) for file in files if file is not None)
    named = ((MODELS, model), (MODELS, low_model), (TEXT_ENCODERS, text_encoder), (VAES, vae))
    return tuple(stamp(folder, name) for folder, name in named)


@lru_cache(maxsize=64)
def _inspected(path: str, stamp: Stamp) -> Checkpoint:
    """A header, read once for a file as it is now."""
    return inspect(path)


@lru_cache(maxsize=64)
def _check_whole(path: str, stamp: Stamp) -> None:
    """See check_whole; once for a file as it is now."""
    check_whole(_inspected(path, stamp))


def _low_name(model: str, high: Checkpoint) -> str | None:
    partner = partner_of(MODELS, model)
    if expert_of(model) == LOW:
        raise WrongModelError(
            "This is the low-noise expert, in the place of the high-noise one",
            where=repr(str(high.path)),
            expected=partner or "a high-noise model",
            remedy=f"Choose {partner or 'the high-noise file'} as model; to sample with this one alone, "
            "set low_model to none",
        )
    if partner is not None or high.expert is None or high.task is None or high.task.boundary is None:
        return partner
    raise WrongModelError(
        "The low-noise expert of this model is missing",
        where=repr(str(high.path)),
        found=f"no {with_address(partner_names(model)[0])} in models/{MODELS}",
        remedy="Put it beside the high-noise file, choose it as low_model, or set low_model to none",
    )


def _part(folder: str, name: str, kind: str, model: Checkpoint, check: Check) -> Checkpoint:
    """The named file, or with auto the only one of the folder that fits the model."""
    if name != AUTO:
        return _checked(folder, name, kind, model, check)
    fitting: list[Checkpoint] = []
    others: dict[str, str] = {}  # and why not
    for listed in choices(folder):
        try:
            fitting.append(_checked(folder, listed, kind, model, check))
        except (WeightsFileError, WrongModelError) as error:  # other people's files in the folder are no error
            others[Path(listed).name] = error.what
    if len(fitting) == 1:
        return fitting[0]
    _refuse_auto(folder, kind, model, fitting, others)


def _checked(folder: str, name: str, kind: str, model: Checkpoint, check: Check) -> Checkpoint:
    path = path_of(folder, name)
    stamp = stamp_of(path)
    checkpoint = _inspected(path, stamp)
    require(checkpoint, kind)
    check(model, checkpoint)
    _check_whole(path, stamp)
    return checkpoint


def _refuse_auto(
    folder: str, kind: str, model: Checkpoint, fitting: list[Checkpoint], others: Mapping[str, str]
) -> NoReturn:
    widget = "vae" if folder == VAES else "text_encoder"
    if fitting:
        names = ", ".join(checkpoint.name for checkpoint in fitting[:LISTED])
        raise WrongModelError(
            "auto cannot decide between several files",
            where=widget,
            found=f"{len(fitting)} in models/{folder} that fit: {names}",
            remedy=f"Choose one of them in the widget {widget}",
        )
    told = [f"{name} ({why[:1].lower()}{why[1:]})" for name, why in others.items()]
    listed = f"{', '.join(told[:LISTED])}{', ...' if len(told) > LISTED else ''}" if told else "nothing"
    raise WrongModelError(
        "auto finds no file that fits the model",
        where=widget,
        found=f"{listed} in models/{folder}",
        remedy=place(kind, model),
    )
