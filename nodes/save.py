"""Videos to files."""

from __future__ import annotations

from comfy_api.latest import Input, io, ui

from ..wan_core.errors import InputError
from ..wan_core.media.formats import available_formats
from ..wan_core.media.names import split_prefix
from .bridge.output import save_video, workflow_metadata


class WanCoreSaveVideo(io.ComfyNode):
    """Writes any VIDEO into the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        formats = available_formats()
        return io.Schema(
            node_id="WanCoreSaveVideo",
            display_name="Wan Save Video",
            category="WanCore/video",
            description="Saves a video in the output folder, with its sound, correct colour tags and the workflow. "
            "The file appears under its name only when it is whole, and never replaces another.",
            search_aliases=["save video", "export video", "mp4", "h264", "prores"],
            inputs=[
                io.Video.Input("video", tooltip="Any video: from Wan VAE Decode, Create Video, Load Video."),
                io.String.Input(
                    "filename_prefix",
                    default="video/Wan",
                    tooltip="Folder and name inside the output folder; a number is added. %date:yyyy-MM-dd%, %width% "
                    "and values of other nodes such as %Wan KSampler (Dual Expert).seed% are filled in.",
                ),
                io.Combo.Input(
                    "format",
                    options=formats,
                    default=formats[0],
                    tooltip="h264, h265 and av1: mp4, h264 plays everywhere. vp9: webm. prores: 422 HQ in mov, for "
                    "editing. ffv1: lossless RGB in mkv. Browsers show h264, av1 and vp9.",
                ),
                io.Int.Input(
                    "crf",
                    default=0,
                    min=0,
                    max=51,
                    advanced=True,
                    tooltip="Constant quality, 1 to 51: lower is better and larger. 0 takes the format's own: 19 for "
                    "h264, 22 for h265, 28 for av1 and vp9. prores and ffv1 have none.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        try:
            split_prefix(filename_prefix or "")
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, video: Input.Video, filename_prefix: str, format: str, crf: int) -> io.NodeOutput:
        metadata = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        saved = save_video(video, filename_prefix, format, crf=crf or None, metadata=metadata)
        result = ui.SavedResult(saved.filename, saved.subfolder, io.FolderType.output)
        return io.NodeOutput(ui=ui.PreviewVideo([result]))


NODES = [WanCoreSaveVideo]
