"""What files are and whether they fit together, before anything is loaded."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.paths import card_of
from ..wan_core.weights import Checkpoint
from ..wan_core.weights.doctor import diagnose
from ..wan_core.weights.pairing import require_known
from .bridge.files import choices, path_of, unlisted
from .bridge.loading import LORAS, MODELS, NONE, TEXT_ENCODERS, VAES, stamp
from .bridge.planning import of_any
from .bridge.show import show_on_node
from .bridge.whole import check_whole

FOLDERS = {"model": MODELS, "low_model": MODELS, "text_encoder": TEXT_ENCODERS, "vae": VAES, "lora": LORAS}
TOOLTIPS = {
    "model": "A diffusion model, from models/diffusion_models.",
    "low_model": "The other expert of a pair.",
    "text_encoder": "From models/text_encoders.",
    "vae": "From models/vae.",
    "lora": "From models/loras.",
}


def _check(checkpoint: Checkpoint) -> None:
    """What the loaders ask of a file."""
    require_known(checkpoint)
    check_whole(checkpoint)


class WanCoreDoctor(io.ComfyNode):
    """Looks at files by their headers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreDoctor",
            display_name="Wan Doctor",
            category="WanCore/loaders",
            description="Says what model files are, what they need, and what does not fit together, with the file to "
            "take instead. Reads their headers only, so it takes no memory and no time.",
            search_aliases=["check model", "which vae", "inspect", "file info"],
            inputs=[
                io.Combo.Input(name, options=[NONE, *choices(folder)], default=NONE, tooltip=TOOLTIPS[name])
                for name, folder in FOLDERS.items()
            ],
            outputs=[io.String.Output("report", tooltip="The findings as text.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str, low_model: str, text_encoder: str, vae: str, lora: str) -> bool | str:
        names = (model, low_model, text_encoder, vae, lora)
        return unlisted({widget: (FOLDERS[widget], name) for widget, name in zip(FOLDERS, names, strict=True)})

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> Any:
        return [stamp(FOLDERS[name], value) for name, value in widgets.items() if name in FOLDERS]

    @classmethod
    def execute(cls, model: str, low_model: str, text_encoder: str, vae: str, lora: str) -> io.NodeOutput:
        names = dict(zip(FOLDERS, (model, low_model, text_encoder, vae, lora), strict=True))
        paths = [path_of(FOLDERS[widget], name) for widget, name in names.items() if name != NONE]
        diagnosis = diagnose(paths, card_of(), _check)
        report = "\n".join([*filter(None, [diagnosis.report()]), *of_any(diagnosis.usable)]) or "no file chosen"
        show_on_node(cls.hidden.unique_id, report)
        return io.NodeOutput(report)


NODES = [WanCoreDoctor]
