"""Sound to video: clips of somebody who speaks or sings what is heard."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.audio.clips import CLIP_FRAMES, plan_clips
from ..wan_core.errors import InputError
from ..wan_core.geometry import CUSTOM, LARGEST_SIDE, require_side
from ..wan_core.tasks import S2V_14B
from .bridge import sound
from .bridge.audio_encoder import load_audio_encoder
from .bridge.files import choices, path_of, unlisted
from .bridge.loading import stamp
from .bridge.show import show_on_node
from .pictures import rgb

AUDIO_ENCODERS = "audio_encoders"


class WanCoreLoadAudioEncoder(io.ComfyNode):
    """Loads wav2vec2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreLoadAudioEncoder",
            display_name="Wan Load Audio Encoder",
            category="WanCore/loaders",
            description="Loads the encoder through which the S2V model hears: wav2vec2, in any size.",
            search_aliases=["audio encoder", "wav2vec2", "load audio encoder"],
            inputs=[
                io.Combo.Input(
                    "audio_encoder_name",
                    options=choices(AUDIO_ENCODERS),
                    tooltip="The file, from models/audio_encoders: wav2vec2_large_english_fp16.safetensors for S2V.",
                )
            ],
            outputs=[io.AudioEncoder.Output("audio_encoder", tooltip="For Wan Sound to Video and native nodes.")],
        )

    @classmethod
    def validate_inputs(cls, audio_encoder_name: str) -> bool | str:
        return unlisted({"audio_encoder_name": (AUDIO_ENCODERS, audio_encoder_name)})

    @classmethod
    def fingerprint_inputs(cls, audio_encoder_name: str) -> Any:
        return stamp(AUDIO_ENCODERS, audio_encoder_name)

    @classmethod
    def execute(cls, audio_encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_audio_encoder(path_of(AUDIO_ENCODERS, audio_encoder_name)))


def _side(name: str, value: int) -> io.Input:
    return io.Int.Input(
        name,
        default=value,
        min=S2V_14B.size_multiple,
        max=LARGEST_SIDE,
        step=S2V_14B.size_multiple,
        advanced=True,
        tooltip=f"Pixels, used when size is custom: a multiple of {S2V_14B.size_multiple}. Useful from 448 to 1280.",
    )


class WanCoreSoundToVideo(io.ComfyNode):
    """A picture that speaks or sings a sound, of any length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreSoundToVideo",
            display_name="Wan Sound to Video",
            category="WanCore/conditioning",
            description="Makes somebody in a picture speak, sing or move to a sound, for as long as it lasts. Long "
            "sounds are sampled in clips, each going on where the one before ended.",
            search_aliases=["s2v", "lip sync", "talking head", "audio to video", "speech to video", "sing"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt: who is seen, what they do, how they feel."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                io.AudioEncoder.Input("audio_encoder", tooltip="wav2vec2 large, English."),
                io.Audio.Input("audio", tooltip="Speech or song. Without music behind it lips follow best."),
                io.Image.Input("ref_image", tooltip="Who is seen, and where. It is cut to the clip's size."),
                io.Image.Input(
                    "pose_video",
                    optional=True,
                    tooltip="Skeletons on black that the body follows, 16 frames per second, from the first frame on.",
                ),
                io.Combo.Input(
                    "size",
                    options=[*sound.AREAS, CUSTOM],
                    default=next(iter(sound.AREAS)),
                    tooltip="Largest number of pixels: the size is the picture's aspect in multiples of 64, never "
                    "above it, and never larger than the picture. custom reads width and height.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=3600.0,
                    step=0.25,
                    tooltip="Duration in seconds, at most that of the sound. 0 takes the whole sound.",
                ),
                io.Int.Input(
                    "clip_frames",
                    default=CLIP_FRAMES,
                    min=8,
                    max=400,
                    step=4,
                    advanced=True,
                    tooltip="Frames that are sampled at once, a multiple of 4. 80 is best; 48 takes less memory. The "
                    "first clip has 4 more where this saves one.",
                ),
                _side("width", 832),
                _side("height", 448),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt with the first clip's sound and picture."),
                io.Conditioning.Output("negative", tooltip="The same without sound."),
                io.Latent.Output("latent", tooltip="Empty latent with the plan of all clips, for Wan KSampler."),
                io.Audio.Output("audio", tooltip="The sound, as long as the video."),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else one of two equal nodes would stay without its text
        )

    @classmethod
    def validate_inputs(
        cls, size: str | None, width: int | None, height: int | None, clip_frames: int | None
    ) -> bool | str:
        try:
            plan_clips(1, clip_frames or CLIP_FRAMES)
            for name, side in (("width", width), ("height", height)):
                if size == CUSTOM and side is not None:
                    require_side(side, S2V_14B.size_multiple, name)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        vae: Any,
        audio_encoder: Any,
        audio: dict[str, Any],
        ref_image: Any,
        size: str,
        seconds: float,
        clip_frames: int,
        width: int,
        height: int,
        pose_video: Any | None = None,
    ) -> io.NodeOutput:
        sound.check_audio(audio)
        ref_image, pose_video = rgb(ref_image, "ref_image"), rgb(pose_video, "pose_video")
        chosen = sound.choose_sound_size(size, ref_image, (width, height))
        audio, frames = sound.trimmed(audio, seconds)
        scene = sound.SoundScene(audio_encoder, audio, ref_image, pose_video)
        positive, negative, latent = sound.sound_to_video(positive, negative, vae, scene, chosen, frames, clip_frames)
        clips, rate = len(latent[sound.CLIPS].clips), S2V_14B.frame_rate
        parts = f"{clips} clip{'s' * (clips != 1)}"
        show_on_node(
            cls.hidden.unique_id, f"{chosen[0]}x{chosen[1]}, {frames} frames in {parts}, {frames / rate:.2f} s"
        )
        return io.NodeOutput(positive, negative, latent, audio)


NODES = [WanCoreLoadAudioEncoder, WanCoreSoundToVideo]
