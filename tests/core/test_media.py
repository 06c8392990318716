"""Encoding: what was put in comes out of the file, in the colours that its tags promise; and names that are safe."""

from __future__ import annotations

import io
import json
import ntpath
import os
import random
import signal
import string
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from wancore.wan_core.errors import InputError, OutputError
from wancore.wan_core.media import atomic, video
from wancore.wan_core.media.formats import FORMATS, VideoFormat, available_formats
from wancore.wan_core.media.names import numbered, split_prefix

ROOT = Path(__file__).parents[2]
H264 = FORMATS["h264"]
PATCHES = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 0, 0),
    (255, 255, 255),
    (128, 128, 128),
    (200, 30, 90),
    (30, 160, 220),
)
PATCH = 32  # pixels
METADATA = {
    "prompt": {"1": {"class_type": "WanCoreSaveVideo", "inputs": {"text": 'a "fox"\n\U0001f98a {; = # \\ <>'}}},
    "workflow": {"nodes": [{"id": 1, "widgets_values": ["ü" * 5000, 0.1, None, True]}]},
}


def colour_chart() -> np.ndarray:
    """One row of flat patches, [PATCH, 8 * PATCH, 3]."""
    return np.repeat(np.repeat(np.array([PATCHES], np.uint8), PATCH, 0), PATCH, 1)


def moving(count: int, height: int = 48, width: int = 80):
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(count):
        yield np.stack([(columns * 2 + index) % 256, rows * 4 % 256, (rows + columns + index) % 256], -1).astype(
            np.uint8
        )


def clip_of(frames, **changes) -> video.Clip:
    frames = list(frames)
    height, width, _ = frames[0].shape
    return video.Clip(**{"frames": frames, "width": width, "height": height, "frame_rate": Fraction(16), **changes})


def rgb_of_bt709(frame: av.VideoFrame) -> np.ndarray:
    """Converts limited-range Y'CbCr by the matrix of ITU-R BT.709, independently of FFmpeg's converter."""
    bits = frame.format.components[0].bits
    planes = []
    for index, plane in enumerate(frame.planes):
        raw = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)[:, : plane.width]
        full = raw.astype(np.float64) / 2 ** (bits - 8)
        if index:
            full = full.repeat(frame.height // plane.height, 0).repeat(frame.width // plane.width, 1)
        planes.append(full)
    y, cb, cr = (planes[0] - 16) / 219, (planes[1] - 128) / 224, (planes[2] - 128) / 224
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    return np.stack([red, green, blue], -1).clip(0, 1) * 255


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures in 0..255."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(params=available_formats())
def format(request) -> VideoFormat:
    return FORMATS[request.param]


def test_every_format_is_there():
    assert available_formats() == ["h264", "h265", "av1", "vp9", "prores", "ffv1"]


def test_frames_size_rate_and_sound_come_back(format, tmp_path):
    path = tmp_path / f"clip.{format.extension}"
    tone = np.sin(np.arange(5 * 44_100) / 20, dtype=np.float32)[None].repeat(2, 0) / 2
    clip = clip_of(moving(33), sound=video.Sound(tone, 44_100))
    assert video.write_video(path, clip, format) == 33
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.width, picture.height, picture.average_rate) == (80, 48, 16)
        samples = [frame.samples for frame in container.decode(sound)]
        assert abs(sum(samples) / sound.rate - 33 / 16) < 0.06, "the sound ends with the last frame"
    frames = decode(path)
    assert len(frames) == 33
    assert [round(float(frame.time) * 16) for frame in frames] == list(range(33))


def test_colours_are_bt709_and_say_so(format, tmp_path):
    path = tmp_path / f"chart.{format.extension}"
    chart = colour_chart()
    video.write_video(path, clip_of([chart] * 3), format, crf=10)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        if format.id == "prores":  # its stream has no field for the range, and FFmpeg 7 leaves it open
            tags = (*tags[:3], tags[3] or video.LIMITED)
        assert tags == ((1, 1, 0, 2) if format.is_rgb else (1, 1, 1, 1))
    seen = frame.to_ndarray(format="rgb24").astype(float) if format.is_rgb else rgb_of_bt709(frame)
    middles = slice(PATCH // 2, None, PATCH)
    np.testing.assert_allclose(seen[PATCH // 2, middles], np.array(PATCHES), atol=0 if format.is_rgb else 4)
    inner = np.tile(np.arange(8) * PATCH, (PATCH - 8, 1)).T.reshape(-1) + np.tile(np.arange(4, PATCH - 4), 8)
    assert decibels(seen[4:-4, inner], chart[4:-4, inner]) > 42


def test_crf_decides_the_size_where_the_format_has_one(format, tmp_path):
    noise = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in range(9)]
    sizes = []
    for crf in (8, None, 48):
        path = tmp_path / f"{crf}.{format.extension}"
        video.write_video(path, clip_of(noise), format, crf=crf)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0] > 1.5 * sizes[2]) is (format.crf is not None)


def test_pictures_become_videos_whatever_else_the_machine_does():
    """x265 failed for every twentieth clip of one or two frames where its threads were kept waiting."""

    def encode(number: int) -> int:
        return video.write_video(io.BytesIO(), clip_of(moving(1 + number % 2)), FORMATS["h265"])

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(encode, range(120))) == 180


def test_a_player_that_trusts_the_tags_sees_the_clip(tmp_path):
    path = tmp_path / "clip.mp4"
    original = list(moving(9))
    video.write_video(path, clip_of(original), H264, crf=10)
    for frame, expected in zip(decode(path), original, strict=True):
        assert decibels(rgb_of_bt709(frame), expected) > 32  # chroma is halved


def test_prompt_and_workflow_come_back(format, tmp_path):
    path = tmp_path / f"clip.{format.extension}"
    video.write_video(path, clip_of(moving(2)), format, metadata=METADATA)
    with av.open(str(path)) as container:
        stored = {key.lower(): value for key, value in container.metadata.items()}
    assert {key: json.loads(stored[key]) for key in METADATA} == METADATA


def test_metadata_is_json_that_browsers_read(tmp_path):
    video.write_video(tmp_path / "a.mp4", clip_of(moving(1)), H264, metadata={"prompt": {"is_changed": [float("nan")]}})
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["prompt"] == '{"is_changed": [null]}'


def test_mp4_starts_with_its_index(tmp_path):
    video.write_video(tmp_path / "a.mp4", clip_of(moving(20)), H264, metadata=METADATA)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_writes_to_a_stream():
    stream = io.BytesIO()
    assert video.write_video(stream, clip_of(moving(5)), H264, metadata=METADATA) == 5
    stream.seek(0)
    with av.open(stream) as container:
        assert len(list(container.decode(video=0))) == 5
        assert json.loads(container.metadata["workflow"]) == METADATA["workflow"]


@pytest.mark.parametrize("width, height", [(65, 63), (64, 63), (1, 1), (2, 2)])
def test_odd_sizes_grow_by_one_line(width, height, tmp_path):
    video.write_video(tmp_path / "odd.mp4", clip_of(moving(2, height, width)), H264)
    frame = decode(tmp_path / "odd.mp4")[0]
    assert (frame.width, frame.height) == (width + width % 2, height + height % 2)


def test_ten_bits_are_kept_where_the_format_has_them(tmp_path):
    ramp = np.linspace(0, 65535, 512).astype(np.uint16)[None, :, None].repeat(32, 0).repeat(3, 2)
    video.write_video(tmp_path / "deep.mp4", clip_of([ramp] * 3, bit_depth=16), H264, crf=1)
    frame = decode(tmp_path / "deep.mp4")[0]
    assert frame.format.name == "yuv420p10le"
    luma = np.frombuffer(frame.planes[0], np.uint16).reshape(32, -1)[:, :512]
    assert len(np.unique(luma)) > 400  # 8 bits have 220


@pytest.mark.parametrize(
    "rate, expected", [(Fraction(24000, 1001), Fraction(24000, 1001)), (Fraction(23.976), None), (30, 30)]
)
def test_frame_rates(rate, expected, tmp_path):
    video.write_video(tmp_path / "a.mp4", clip_of(moving(3), frame_rate=Fraction(rate)), H264)
    with av.open(str(tmp_path / "a.mp4")) as container:
        found = container.streams.video[0].average_rate
    assert found == expected if expected else abs(found - 23.976) < 1e-3


@pytest.mark.parametrize(
    "channels, rate", [(1, 16_000), (2, 192_000), (3, 22_050), (6, 48_000), (8, 48_000), (1, 7_000)]
)
def test_any_sound_is_taken(channels, rate, format, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, (channels, rate)).astype(np.float32)
    noise[0, :5] = np.nan
    path = tmp_path / f"a.{format.extension}"
    video.write_video(path, clip_of(moving(17), sound=video.Sound(noise, rate)), format)
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert all(np.isfinite(part).all() for part in decoded)


def test_no_frames_and_no_rate_are_refused(tmp_path):
    with pytest.raises(InputError):
        video.write_video(tmp_path / "a.mp4", video.Clip([], 64, 64, Fraction(16)), H264)
    with pytest.raises(InputError):
        video.write_video(tmp_path / "a.mp4", clip_of(moving(1), frame_rate=Fraction(0)), H264)


def test_a_missing_encoder_names_the_others(tmp_path):
    absent = VideoFormat("x266", ("libx266",), 20, 1.0)
    with pytest.raises(OutputError) as caught:
        video.write_video(tmp_path / "a.mp4", clip_of(moving(1)), absent)
    assert caught.value.found == "x266"
    assert "h264" in caught.value.expected


def test_an_encoder_error_names_the_format(tmp_path):
    too_small = VideoFormat("prores", ("dnxhd",), None, 1.0, container="mov", pixel_format="yuv422p")  # takes few sizes
    with pytest.raises(OutputError) as caught, atomic.partial_file(tmp_path, "a") as partial:
        video.write_video(partial.path, clip_of(moving(1)), too_small)
    assert "prores" in caught.value.what
    assert os.listdir(tmp_path) == []


def test_frames_are_let_go_as_they_are_written(tmp_path):
    alive, most = set(), 0

    def frames():
        nonlocal most
        for frame in moving(60):
            alive.add(id(frame))
            weakref.finalize(frame, alive.discard, id(frame))
            most = max(most, len(alive))
            yield frame

    video.write_video(tmp_path / "a.mp4", video.Clip(frames(), 80, 48, Fraction(16)), H264)
    assert most <= 3


def test_stop_leaves_nothing(tmp_path):
    class Stop(BaseException):
        pass

    def stop(done: int) -> None:
        if done == 7:
            raise Stop

    with pytest.raises(Stop), atomic.partial_file(tmp_path, "a") as partial:
        video.write_video(partial.path, clip_of(moving(20)), H264, on_frame=stop)
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
sys.path.insert(0, {tools!r})
import pack; pack.import_pack()
import numpy as np
from fractions import Fraction
from pathlib import Path
from wancore.wan_core.media import atomic, formats, video
def frames():
    for index in range(400):
        if index == {at}:
            print("now", flush=True); time.sleep(60)
        yield np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
with atomic.partial_file(Path({folder!r}), "Wan") as partial:
    video.write_video(partial.path, video.Clip(frames(), 64, 64, Fraction(16)), formats.FORMATS["h264"])
    partial.publish(["Wan_00001_.mp4"])
"""


@pytest.mark.parametrize("at", [0, 200])
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_kill_in_the_middle_leaves_no_final_name(at, tmp_path):
    code = KILLED.format(tools=str(ROOT / "tools"), folder=str(tmp_path), at=at)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list(tmp_path.glob("*.mp4"))
    assert all(name.startswith(".Wan.") and name.endswith(".partial") for name in os.listdir(tmp_path))
    left = [tmp_path / name for name in os.listdir(tmp_path)]
    with atomic.partial_file(tmp_path, "next"):
        assert all(path.exists() for path in left), "it may be written to from another machine"
    for path in left:
        os.utime(path, (0, 0))
    others = [tmp_path / f".mine.{os.getpid()}.0.partial", tmp_path / ".notes.partial", tmp_path / "a.1.0.partial"]
    for path in others:
        path.touch()
        os.utime(path, (0, 0))
    with atomic.partial_file(tmp_path, "next"):
        assert not any(path.exists() for path in left) and all(path.exists() for path in others)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_left_clean(small_disk):
    noise = [np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8) for seed in range(60)]
    with pytest.raises(OutputError) as caught, atomic.partial_file(small_disk, "Wan") as partial:
        video.write_video(partial.path, clip_of(noise), H264)
    assert "full" in caught.value.what
    assert caught.value.where == str(small_disk)
    assert os.listdir(small_disk) == []


def test_space_is_checked_before(small_disk):
    atomic.require_space(small_disk, 1000)
    with pytest.raises(OutputError) as caught:
        atomic.require_space(small_disk, 64 * atomic.MIB)
    assert (caught.value.found, caught.value.expected) == ("1 MiB free", "about 64 MiB")


def test_a_disk_that_does_not_say_what_is_free_is_not_full(tmp_path, monkeypatch):
    says_nothing = SimpleNamespace(total=0, used=0, free=0)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: says_nothing)
    atomic.require_space(tmp_path, atomic.MIB)


def test_a_folder_that_is_a_file_or_read_only_is_an_error(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "open", refuse)  # root may write anywhere, so the refusal is brought about
    with pytest.raises(OutputError) as caught, atomic.partial_file(tmp_path, "Wan"):
        pass
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("number", [28, 17, 13], ids=["full", "taken", "refused"])
def test_remedies_are_those_of_the_folder(number, tmp_path):
    """ENOSPC, EEXIST and EACCES."""
    (tmp_path / "file").touch()
    said = []
    for remedies in ((), (atomic.TEMP_FOLDER,), (atomic.USER_FOLDER,)):
        with pytest.raises(OutputError) as caught, atomic.disk_errors(tmp_path, *remedies):
            raise OSError(number, "no", str(tmp_path / "file"))
        said.append(caught.value.remedy)
    output, *others = said
    assert len({*said}) == 3
    assert not any(word in other for word in ("saving", "prefix", "--output") for other in others)
    assert "saving" in output or "--output-directory" in output


def test_threads_and_processes_get_different_numbers(tmp_path):
    (tmp_path / "Wan_00003_.mp4").write_bytes(b"mine")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import pack; pack.import_pack()\n"
        "from pathlib import Path\nfrom wancore.wan_core.media import atomic, names\n"
        "for index in range(20):\n"
        f"    with atomic.partial_file(Path({str(tmp_path)!r}), 'Wan') as partial:\n"
        "        partial.path.write_bytes(b'process %d' % index); partial.publish(names.numbered('Wan', 'mp4'))\n"
    )

    def save(thread: int) -> None:
        for index in range(10):
            with atomic.partial_file(tmp_path, "Wan") as partial:
                partial.path.write_bytes(b"%d %d" % (thread, index))
                partial.publish(numbered("Wan", "mp4"))

    process = subprocess.Popen([sys.executable, "-c", code])
    threads = [threading.Thread(target=save, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    contents = [path.read_bytes() for path in tmp_path.iterdir()]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"Wan_{number:05}_.mp4" for number in range(1, 102)]
    assert len(set(contents)) == 101
    assert (tmp_path / "Wan_00003_.mp4").read_bytes() == b"mine"


def test_folders_without_hard_links_work_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "Wan_00001_.mp4").write_bytes(b"mine")
    with atomic.partial_file(tmp_path, "Wan") as partial:
        partial.path.write_bytes(b"new")
        final = partial.publish(numbered("Wan", "mp4"))
    assert final.name == "Wan_00002_.mp4"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "Wan_00001_.mp4": b"mine",
        "Wan_00002_.mp4": b"new",
    }


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
def test_data_is_on_disk_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    order = []
    real_sync, real_link = os.fsync, os.link
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), real_sync(handle))
    )
    monkeypatch.setattr(os, "link", lambda source, target: (order.append("link"), real_link(source, target)))
    with atomic.partial_file(tmp_path, "Wan") as partial:
        partial.publish(["Wan.mp4"])
    assert order == [str(partial.path), "link", str(tmp_path)]


REFUSED = """
../x  a/../../x  a/..  ..  /etc/passwd  //server/share  \\\\server\\share\\x  \\x  C:x  C:\\x  c:/x  a\\..\\..\\x
.. /x
""".split()
KEPT = {
    "video/Wan": ("video", "Wan"),
    "Wan": ("", "Wan"),
    "a\\b\\Wan": ("a/b", "Wan"),
    "a//b///Wan": ("a/b", "Wan"),
    "./a/./Wan": ("a", "Wan"),
    "": ("", "WanCore"),
    ".": ("", "WanCore"),
    "video/": ("video", "WanCore"),
    "~/Wan": ("~", "Wan"),
    "$HOME": ("", "$HOME"),
    "a\x00b": ("", "a_b"),
    "a\nb": ("", "a_b"),
    "12:30": ("", "12_30"),
    "CON": ("", "_CON"),
    "aux.mp4": ("", "_aux.mp4"),
    "Lpt1/nul": ("_Lpt1", "_nul"),
    "name. . ": ("", "name"),
    "a\u202egnp.exe": ("", "a_gnp.exe"),
    "%year%-%width%": ("", "%year%-%width%"),
    "x" * 300: ("", "x" * 120),
    "\u00fc" * 300: ("", "\u00fc" * 60),
    "-rf": ("", "-rf"),
}


@pytest.mark.parametrize("prefix", REFUSED)
def test_prefixes_that_lead_out_are_refused(prefix):
    with pytest.raises(InputError) as caught:
        split_prefix(prefix)
    assert caught.value.where == "filename_prefix"


@pytest.mark.parametrize("prefix, expected", KEPT.items())
def test_prefixes_become_valid_names(prefix, expected):
    assert split_prefix(prefix) == expected


def test_no_random_prefix_leads_out(tmp_path):
    letters = [
        *string.printable,
        "..",
        "../",
        "..\\",
        "C:",
        "\\\\",
        "//",
        "\x00",
        "\u202e",
        "CON",
        "\udc80",
        "~",
        "%2e%2e/",
    ]
    generator = random.Random(0)
    for _ in range(3000):
        prefix = "".join(generator.choices(letters, k=generator.randrange(12)))
        try:
            folder, stem = split_prefix(prefix)
        except InputError:
            continue
        for flavour, root in ((ntpath, "C:\\ComfyUI\\output"), (os.path, str(tmp_path))):
            target = flavour.normpath(flavour.join(root, folder, stem + "_00001_.mp4"))
            assert flavour.commonpath([root, target]) == root
            assert flavour.basename(target) == stem + "_00001_.mp4"
        assert not set(stem) & set('<>:"/\\|?*\x00\n')
