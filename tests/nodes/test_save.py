"""Saving: any native VIDEO, into the output folder only, with the workflow, and whole or not at all."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import Input, InputImpl, Types, io
from comfy_extras.nodes_video import GetVideoComponents, SaveVideo, VideoSlice
from wancore.nodes.bridge.video import FrameVideo
from wancore.nodes.save import WanCoreSaveVideo
from wancore.wan_core.errors import InputError, OutputError

from .native import LargestFloat, run

PROMPT = {"1": {"class_type": "WanCoreSaveVideo", "inputs": {"filename_prefix": "ü \U0001f98a"}}}
WORKFLOW = {"nodes": [{"id": 1}], "version": 0.4}
HIDDEN = {io.Hidden.prompt: PROMPT, io.Hidden.extra_pnginfo: {"workflow": WORKFLOW}}
TONE = {"waveform": torch.sin(torch.arange(48_000 * 3) / 30)[None, None].repeat(1, 2, 1) / 2, "sample_rate": 48_000}

HAS_BIT_DEPTH = "bit_depth" in inspect.signature(InputImpl.VideoFromComponents.__init__).parameters
CODECS: tuple = ("auto", "h264")  # what the native node's codec input takes: names, or choices with their own inputs
if isinstance(next(item for item in SaveVideo.define_schema().inputs if item.id == "codec"), io.DynamicCombo.Input):
    CODECS = ({"codec": "auto"}, {"codec": "h264", "encoding": {"encoding": "re-encode", "crf": 40.0}})


def pictures(count=17, height=48, width=64):
    ramp = torch.linspace(0, 1, width).expand(count, height, width)
    return torch.stack([ramp, ramp.flip(-1), torch.linspace(0, 1, count)[:, None, None].expand_as(ramp)], -1)


def frame_video(count=17, audio=None, **size):
    return FrameVideo((pictures(count, **size) * 255).round().to(torch.uint8), Fraction(16), audio)


def native_video(count=17, audio=None, **options):
    components = Types.VideoComponents(images=pictures(count), audio=audio, frame_rate=Fraction(16))
    return InputImpl.VideoFromComponents(components, **options)


@pytest.fixture
def output(tmp_path, monkeypatch):
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def save(video, prefix="video/Wan", format="h264", crf=0, hidden=HIDDEN):
    return run(WanCoreSaveVideo, hidden=hidden, video=video, filename_prefix=prefix, format=format, crf=crf)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_node_shows_the_file_and_the_file_holds_everything(output):
    shown = save(frame_video(audio=TONE)).ui.as_dict()
    assert shown["images"] == [{"filename": "Wan_00001_.mp4", "subfolder": "video", "type": "output"}]
    assert shown["animated"] == (True,)
    with av.open(str(output / "video" / "Wan_00001_.mp4")) as container:
        assert json.loads(container.metadata["prompt"]) == PROMPT
        assert json.loads(container.metadata["workflow"]) == WORKFLOW
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert len(container.streams.audio) == 1
        assert len(list(container.decode(video=0))) == 17


def test_metadata_is_stored_as_the_native_node_stores_it(output):
    save(frame_video())
    run(SaveVideo, hidden=HIDDEN, video=native_video(), filename_prefix="native", format="auto", codec=CODECS[0])
    stored = []
    for name in ("video/Wan_00001_.mp4", "native_00001_.mp4"):
        with av.open(str(output / name)) as container:
            stored.append({key: container.metadata[key] for key in ("prompt", "workflow")})
    assert stored[0] == stored[1]


def test_metadata_can_be_switched_off(output, monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    save(frame_video())
    with av.open(str(output / "video" / "Wan_00001_.mp4")) as container:
        assert not {"prompt", "workflow"} & set(container.metadata)


def native_file(tmp_path):
    native_video(audio=TONE).save_to(str(tmp_path / "native.mp4"))
    return InputImpl.VideoFromFile(str(tmp_path / "native.mp4"))


@pytest.mark.parametrize("make", [lambda _: native_video(audio=TONE), native_file, lambda _: frame_video(audio=TONE)])
@pytest.mark.parametrize("format", WanCoreSaveVideo.define_schema().inputs[2].options)
def test_any_native_video_in_any_format(make, format, output, tmp_path):
    save(make(tmp_path), format=format)
    (name,) = names(output)
    with av.open(str(output / name)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert container.streams.audio[0].rate == 48_000
    assert abs(torch.from_numpy(frame).float() - pictures()[0] * 255).mean() < 6


def test_saving_makes_no_float_of_the_clip(output):
    video = frame_video()
    with LargestFloat() as seen:
        save(video)
    assert seen.largest == 0
    with LargestFloat() as seen:
        save(native_video())
    assert seen.largest <= pictures().numel(), "a clip that comes as float is not copied"


@pytest.mark.skipif(not HAS_BIT_DEPTH, reason="this ComfyUI's videos have no bit depth")
def test_ten_bit_videos_stay_ten_bit(output):
    save(native_video(bit_depth=10))
    with av.open(str(output / "video" / "Wan_00001_.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


def test_crf_is_the_size_of_the_file(output):
    noise = FrameVideo(torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8), Fraction(16))
    for crf in (10, 0, 40):
        save(noise, crf=crf)
    sizes = [(output / "video" / f"Wan_0000{number}_.mp4").stat().st_size for number in (1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)


def test_numbers_go_on_and_nothing_is_replaced(output):
    (output / "video").mkdir()
    (output / "video" / "Wan_00007_.mp4").write_bytes(b"mine")
    (output / "video" / "Wan_00008_.png").write_bytes(b"mine too")
    save(frame_video())
    save(frame_video())
    assert names(output) == [f"video/Wan_0000{rest}" for rest in ("7_.mp4", "8_.png", "9_.mp4")] + [
        "video/Wan_00010_.mp4"
    ]
    assert (output / "video" / "Wan_00007_.mp4").read_bytes() == b"mine"


def test_a_number_taken_in_the_meantime_is_skipped(output, monkeypatch):
    real = folder_paths.get_save_image_path

    def slow(*arguments):
        place = real(*arguments)
        (output / "video" / "Wan_00001_.mp4").write_bytes(b"mine")
        return place

    monkeypatch.setattr(folder_paths, "get_save_image_path", slow)
    save(frame_video())
    assert names(output) == ["video/Wan_00001_.mp4", "video/Wan_00002_.mp4"]
    assert (output / "video" / "Wan_00001_.mp4").read_bytes() == b"mine"


def test_size_and_date_are_filled_in(output):
    save(frame_video(height=48, width=64), prefix="%width%x%height%/%year%")
    (name,) = names(output)
    assert name.startswith("64x48/20") and "%" not in name


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "C:\\x", "\\\\server\\share\\x", "//x"])
def test_a_prefix_that_leads_out_is_refused_before_anything_runs(prefix, output):
    assert "output folder" in WanCoreSaveVideo.validate_inputs(filename_prefix=prefix)
    with pytest.raises(InputError) as caught:
        save(frame_video(), prefix=prefix)
    assert caught.value.where == "filename_prefix"
    assert names(output.parent) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_out_of_the_output_folder_is_refused(output):
    outside = output.parent / "outside"
    outside.mkdir()
    (output / "link").symlink_to(outside)
    with pytest.raises(InputError):
        save(frame_video(), prefix="link/x")
    assert names(outside) == []


@pytest.mark.parametrize("prefix", ["taken/Wan", "taken/deeper/Wan"])
def test_a_file_where_the_folder_should_be_is_named(prefix, output):
    (output / "taken").write_text("mine")
    with pytest.raises(OutputError) as caught:
        save(frame_video(2), prefix=prefix)
    assert caught.value.where == str(output / "taken")
    assert names(output) == ["taken"]


def test_a_grey_video_is_three_equal_colours(output):
    components = Types.VideoComponents(images=pictures(2)[..., :1], audio=None, frame_rate=Fraction(16))
    save(InputImpl.VideoFromComponents(components), prefix="grey", format="ffv1")
    with av.open(str(output / "grey_00001_.mkv")) as container:
        seen = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert (seen == seen[..., :1]).all() and seen.min() == 0 and seen.max() == 255


def test_stop_is_heard_at_a_frame_and_leaves_nothing(output):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        save(frame_video())
    assert names(output) == []
    save(frame_video())
    assert names(output) == ["video/Wan_00001_.mp4"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting needs root")
def test_too_little_space_is_said_before_encoding(output):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", output], capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        with pytest.raises(OutputError) as caught:
            save(FrameVideo(torch.zeros(81, 480, 832, 3, dtype=torch.uint8), Fraction(16)))
        assert caught.value.where == str(output / "video")
        assert names(output) == []
    finally:
        subprocess.run(["umount", output], check=True)


def test_schema():
    schema = WanCoreSaveVideo.define_schema()
    assert [item.id for item in schema.inputs] == ["video", "filename_prefix", "format", "crf"]
    assert schema.inputs[2].default == "h264"
    assert schema.is_output_node and schema.description and all(item.tooltip for item in schema.inputs)


class TestFrameVideo:
    """The VIDEO of this pack does what native nodes ask of one."""

    def test_every_method_of_the_native_video_is_answered(self):
        assert not FrameVideo.__abstractmethods__
        ours, native = frame_video(audio=TONE), native_video(audio=TONE)
        for name in [name for name in dir(Input.Video) if name.startswith("get_") and name != "get_stream_source"]:
            mine, theirs = getattr(ours, name)(), getattr(native, name)()
            if name == "get_components":
                assert torch.allclose(mine.images, theirs.images, atol=0.5 / 255 + 1e-6)
                assert mine.images.dtype == theirs.images.dtype
                assert (mine.audio, mine.frame_rate) == (theirs.audio, theirs.frame_rate)
            else:
                assert mine == theirs, name

    def test_native_save_video_takes_it(self, output):
        for codec in CODECS:
            run(SaveVideo, hidden=HIDDEN, video=frame_video(), filename_prefix="a", format="mp4", codec=codec)
        assert names(output) == ["a_00001_.mp4", "a_00002_.mp4"]
        with av.open(str(output / "a_00001_.mp4")) as container:
            assert json.loads(container.metadata["workflow"]) == WORKFLOW
            assert len(list(container.decode(video=0))) == 17

    def test_native_get_video_components_takes_it(self):
        images, audio, rate, *depth = run(GetVideoComponents, video=frame_video(audio=TONE)).result
        assert images.shape == (17, 48, 64, 3) and images.dtype == torch.float32
        assert (audio["sample_rate"], rate, depth) == (48_000, 16.0, [8] if HAS_BIT_DEPTH else [])

    def test_it_streams_as_a_native_video_does(self):
        source = frame_video().get_stream_source()
        assert isinstance(source, BytesIO)
        assert InputImpl.VideoFromFile(source).get_frame_count() == 17

    @pytest.mark.parametrize(
        "start, duration, count", [(0, 0, 32), (0.5, 1, 16), (-0.5, 0, 8), (1.5, 9, 8), (0, 0.5, 8)]
    )
    def test_trimming_cuts_frames_and_sound(self, start, duration, count):
        video = run(
            VideoSlice, video=frame_video(32, TONE), start_time=start, duration=duration, strict_duration=False
        ).result[0]
        assert video.get_frame_count() == count
        assert video.get_components().audio["waveform"].shape[-1] == count * 48_000 // 16
        whole = frame_video(32).frames
        first = round(start * 16) % 32
        assert torch.equal(video.frames, whole[first : first + count])

    def test_a_trim_that_is_too_short_is_refused_when_strict(self):
        assert frame_video().as_trimmed(0.5, 5, strict_duration=True) is None
        assert frame_video().as_trimmed(50, 0) is None

    def test_a_failed_save_keeps_the_old_file(self, tmp_path, monkeypatch):
        target = tmp_path / "a.mp4"
        target.write_bytes(b"old")

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OutputError):
            frame_video().save_to(str(target))
        assert names(tmp_path) == ["a.mp4"] and target.read_bytes() == b"old"

    def test_a_long_name_is_taken(self, tmp_path):
        path = tmp_path / ("\u6587" * 83 + ".mp4")
        frame_video(2).save_to(path)
        assert names(tmp_path) == [path.name]

    def test_another_codec_is_refused(self, tmp_path):
        with pytest.raises(InputError):
            frame_video().save_to(str(tmp_path / "a.webm"), format="webm", codec="vp9")
