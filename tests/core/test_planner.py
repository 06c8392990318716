"""The planner's arithmetic: exact where headers decide, near the measurements where memory and time do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from wancore.wan_core.planner import memory, pace
from wancore.wan_core.planner.memory import GIB, Clip, Part, Weights
from wancore.wan_core.planner.overview import overview_of
from wancore.wan_core.planner.plan import WAITED, Machine, Run, expected, plan, what
from wancore.wan_core.planner.rounding import NOTHING, InEightBits
from wancore.wan_core.weights import inspect

from .hollow_files import text_encoder, transformer, vae
from .weight_files import shapes_of, write_hollow

MEASURED = json.loads(Path(__file__).with_name("planner_measured.json").read_text())
H200 = "NVIDIA H200"
CLIP = Clip(832, 480, 81)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Part]:
    """Full-size files of the published names and shapes: sparse, so that they take no disk."""
    folder = tmp_path_factory.mktemp("models")
    rows = (*MEASURED["held"], *MEASURED["sent"], *MEASURED["least"])
    wanted = {(row["shapes"], row["precision"]) for row in rows}
    makers = {"umt5_xxl": text_encoder, "vae21": vae, "vae22": vae}
    wanted.add(("t2v_A14B_expert", "bf16"))
    made = {(shapes, kind): makers.get(shapes, transformer)(folder, shapes, kind) for shapes, kind in wanted}
    return {key: Part.of(inspect(path)) for key, path in made.items()}


def held(row: dict, files: dict) -> float:
    """Bytes that PyTorch holds at most: activations, and matrices that are decoded for a layer."""
    part, clip = files[row["shapes"], row["precision"]], Clip(*row["clip"])
    if row["phase"] == "sampling":
        in_blocks = part.checkpoint.precision == "Q4_K"  # decoded for each layer; float8 is multiplied as it is
        tokens = clip.tokens(part.config)
        blocks = memory.activations(part.config, tokens, sparing=row["sparing"]) + in_blocks * part.weights.decoded
        return blocks + memory.latents(part.config, tokens)
    if row["phase"] == "text encode":
        return memory.TEXT_WORKING
    working = memory.VAE_WORKING[8]
    return (working.decode if row["phase"] == "VAE decode" else working.encode) * clip.width * clip.height


@pytest.mark.parametrize("row", MEASURED["held"], ids=lambda row: f"{row['phase']} {row['shapes']} {row['precision']}")
def test_activations_are_near_what_was_measured(row, files):
    assert held(row, files) / GIB == pytest.approx(row["gib"], rel=0.06)


@pytest.mark.parametrize("row", MEASURED["sent"], ids=lambda row: f"{row['shapes']} {row['precision']}")
def test_transfers_are_near_what_was_measured(row, files):
    planned = memory.transfer(files[row["shapes"], row["precision"]], Clip(*row["clip"]), row["free"] * GIB)
    assert planned / 1e9 == pytest.approx(sum(row["gb"]) / len(row["gb"]), rel=0.1)


@pytest.mark.parametrize("row", MEASURED["least"], ids=lambda row: f"{row['phase']} {row['shapes']} {row['precision']}")
def test_the_least_is_near_what_bisection_found(row, files):
    """Sampling was bisected twice, once on each of two GPUs; docs/memory.md says which code the other phases ran in."""
    part, clip = files[row["shapes"], row["precision"]], Clip(*row["clip"])
    planned = {
        "sampling": memory.sampling,
        "text encode": lambda part, _clip: memory.text_encode(part),
        "VAE decode": lambda *both: next(memory.vae(*both, encode=False)),
        "VAE encode": lambda *both: next(memory.vae(*both, encode=True)),
    }[row["phase"]](part, clip)
    if ways := row.get("in_8_bits"):
        planned = memory.sampling(part, clip, InEightBits(**dict.fromkeys(ways, True)))
    assert planned.name == row["phase"] and planned.vram / GIB == pytest.approx(row["gib"], rel=0.1)


def test_parts_of_a_run(files):
    """With a text encoder, both experts and the VAE; the least is what the fullest phase needs, VAEs in tiles."""
    high = files["i2v_A14B_expert", "fp8"]
    parts = {"low": high, "text_encoder": files["umt5_xxl", "fp8"], "vae_file": files["vae21", "bf16"]}
    found = memory.phases(high, Clip(1280, 720, 81), **parts, encode=True)
    assert [phase.name for phase in found] == ["text encode", "VAE encode", "sampling", "sampling", "VAE decode"]
    assert memory.least_vram(found) == found[2].vram and found[4].vram < found[2].vram < 1.1 * found[4].whole
    assert memory.least_ram(found) == max(phase.ram for phase in found)


def test_tiles_are_joined_in_ram(files):
    """A clip in half precision, where the card has too little for whole frames."""
    clip = Clip(1280, 720, 81)
    high, vae_file = files["t2v_A14B_expert", "fp8"], files["vae21", "bf16"]
    found = memory.phases(high, clip, vae_file=vae_file)
    decode, joined = found[-1], 2 * 3 * 1280 * 720 * 81 + memory.TILING
    assert memory.least_ram((decode,)) == memory.least_ram((decode,), decode.whole) == decode.ram
    assert memory.least_ram((decode,), decode.whole - 1) == decode.ram + joined
    small, large = (
        plan(Run(high, clip, vae=vae_file), Machine(H200, decode.whole + more, 64 * GIB), pace.Pace({}))
        for more in (-GIB, GIB)
    )
    assert small.ram == max(decode.ram + joined, large.ram)


def test_tiles_fit_their_room():
    for width, height, compression in ((1280, 704, 16), (1280, 720, 8), (832, 480, 8)):
        working = memory.VAE_WORKING[compression].decode
        for room in (1 * GIB, 3 * GIB, 5 * GIB, 100 * GIB):
            size = memory.tile(width, height, compression, room)
            assert size != (width, height) and size[0] % compression == size[1] % compression == 0
            assert working * size[0] * size[1] <= room or max(size) <= 2 * memory.LEAST_TILE
    assert memory.tile(128, 96, 8, 1.0) == (128, 96)


def test_weights_are_what_the_header_says(files):
    found = files["t2v_A14B_expert", "fp8"].weights
    block = 8 * 5120**2 + 2 * 5120 * 13824  # one byte each, and the bfloat16 biases and norms
    assert found.fetched == pytest.approx(block, rel=0.001)
    assert found.total == files["t2v_A14B_expert", "fp8"].checkpoint.path.stat().st_size - header_bytes(files)
    assert found.streamed + found.kept == found.total and found.kept < 10e6
    assert found.decoded == 2 * 5120 * 13824


def header_bytes(files) -> int:
    """Of the file, and of the mark of its layout, which is no tensor of the model."""
    path = files["t2v_A14B_expert", "fp8"].checkpoint.path
    return 8 + int.from_bytes(path.read_bytes()[:8] if path.stat().st_size < 1e6 else path.open("rb").read(8), "little")


def test_tokens():
    config = inspect_config()
    assert CLIP.tokens(config) == 32_760  # 21 latent frames of 30 x 52
    assert Clip(1280, 720, 81).tokens(config) == 75_600


def inspect_config():
    from wancore.wan_core.config import TransformerConfig

    return TransformerConfig(5120, 13824, 40, 40)


def test_work_is_counted_by_hand():
    needed = pace.work(inspect_config(), 32_760)
    assert needed.linear + needed.attention == pytest.approx(1.678e15, rel=0.005)


def test_more_free_memory_is_fewer_transfers(files):
    part = files["t2v_A14B_expert", "fp8"]
    least = memory.sampling(part, CLIP).vram
    sent = [memory.transfer(part, CLIP, least + extra * GIB) for extra in (0, 5, 10, 20)]
    assert sent[0] == part.weights.streamed and sent[3] == 0
    assert sent[1] - sent[2] == pytest.approx(5 * GIB)


def test_one_measurement_corrects_every_size(files):
    """Seconds of a forward in bf16 at 480p and 720p, on one card: learned from one, within a tenth at the other."""
    part, clips = files["t2v_A14B_expert", "bf16"], (CLIP, Clip(1280, 720, 81))
    machine = Machine(H200, 100 * GIB, 64 * GIB, 50)
    before = plan(Run(part, CLIP, forwards=(2, 2)), machine, pace.Pace({}))
    assert not before.measured and "an estimate" in before.report(machine)
    seconds = MEASURED["forward"]
    for told, asked in (("480p", "720p"), ("720p", "480p")):
        sizes = dict(zip(("480p", "720p"), clips, strict=True))
        learned = pace.Pace({}).learned(
            what(part.checkpoint), seconds[told], expected(part.checkpoint, sizes[told], H200)
        )
        there = (part.weights.streamed,) * 2
        found = plan(Run(part, sizes[asked], forwards=(2, 2), there=there), machine, learned)
        assert found.measured and found.forward == pytest.approx(seconds[asked], rel=0.1)
        assert found.sampling == pytest.approx(4 * found.forward)


@pytest.mark.parametrize(
    "row", MEASURED["sampling"], ids=lambda row: f"{row['shapes']} {row['precision']} {row['link']} GB/s"
)
def test_a_run_is_timed_within_a_tenth_after_one_calibration(row, files):
    """On cards that weights are streamed to, learned from a forward with all of them at hand."""
    part, clip = files[row["shapes"], row["precision"]], Clip(*row["clip"])
    machine = Machine(H200, row["free"] * GIB, 64 * GIB, row["link"])
    learned = pace.Pace({}).learned(what(part.checkpoint), row["forward"], expected(part.checkpoint, clip, H200))
    low = part if row["first"] == 2 else None
    forwards = (2, 2) if low else (len(row["seconds"]), 0)
    found = plan(Run(part, clip, low, forwards=forwards), machine, learned)
    assert found.sampling == pytest.approx(sum(row["seconds"]), rel=0.1)


def test_attention_in_8_bits_is_a_kind_of_its_own(files):
    """It takes less time and more memory, and what is learned from a run with it is not said of one without."""
    part, machine = files["t2v_A14B_expert", "fp8"], Machine(H200, 8 * GIB, 64 * GIB, 1000.0)
    ways = (NOTHING, InEightBits(attention=True))
    runs = [Run(part, CLIP, part, forwards=(2, 2), eight_bits=eight_bits) for eight_bits in ways]
    exact, rounded = (plan(run, machine, pace.Pace({})) for run in runs)
    assert exact.forward == pytest.approx(1.99, rel=0.05) and rounded.forward == pytest.approx(1.73, rel=0.05)
    tokens = 32_760 * 5120 * 2  # queries, keys and values in 8 bits, 1.5 of them, some of which fit into gaps
    assert rounded.vram - exact.vram == pytest.approx(1.1 * tokens)
    assert rounded.sent > exact.sent
    learned = pace.Pace({}).learned(what(part.checkpoint, ways[1]), 1.0, expected(part.checkpoint, CLIP, H200, ways[1]))
    exact, rounded = (plan(run, machine, learned) for run in runs)
    assert rounded.measured and rounded.forward == pytest.approx(1.0) and not exact.measured


def test_layers_in_8_bits(files):
    """A card without float8 units gains most."""
    card, both = "NVIDIA GeForce RTX 3090", InEightBits(attention=True, layers=True)
    for precision in ("fp8", "Q4_K", "bf16"):
        part = files["t2v_A14B_expert", precision]
        exact, rounded = (expected(part.checkpoint, CLIP, card, eight_bits) for eight_bits in (NOTHING, both))
        assert rounded < 0.5 * exact
    for precision, share in (("fp8", 1.0), ("bf16", 0.88), ("Q4_K", 0.88)):  # Hopper multiplies float8 as without
        checkpoint = files["t2v_A14B_expert", precision].checkpoint
        exact, rounded = (expected(checkpoint, CLIP, H200, InEightBits(layers=layers)) for layers in (False, True))
        assert rounded == pytest.approx(share * exact, rel=0.03)
    assert what(part.checkpoint, both).endswith("attention and layers in 8 bits")


def test_nodes_that_make_a_run_faster_are_named(files):
    """Those that it does without, on a card that has kernels for them, and where they change much."""
    card, both = "NVIDIA GeForce RTX 3060", InEightBits(attention=True, layers=True)

    def report(name: str, kernels: InEightBits, precision: str = "fp8", wished: InEightBits = NOTHING) -> str:
        machine = Machine(name, 12 * GIB, 64 * GIB, in_8_bits=kernels)
        run = Run(files["t2v_A14B_expert", precision], CLIP, forwards=(2, 0), eight_bits=wished)
        return plan(run, machine, pace.Pace({})).report(machine).splitlines()[-1]

    assert report(card, both) == "with Wan 8-bit Attention and Wan 8-bit Layers: about 1 min 4 s, an estimate"
    assert report(card, both, wished=InEightBits(attention=True)).startswith("with Wan 8-bit Layers: about")
    assert report(card, InEightBits(attention=True)).startswith("with Wan 8-bit Attention: about")
    assert report(H200, both, "bf16").startswith("with Wan 8-bit Attention and Wan 8-bit Layers: about")
    for nothing in (report(card, both, wished=both), report(card, NOTHING), report(H200, both), report("Other", both)):
        assert not nothing.startswith("with")


def test_what_lies_on_the_gpu_is_not_waited_for(files):
    part, machine = files["t2v_A14B_expert", "fp8"], Machine(H200, 100 * GIB, 64 * GIB, 10.0)
    streamed = part.weights.streamed
    waits = [
        plan(Run(part, CLIP, part, forwards=(2, low), there=there), machine, pace.Pace({})).sampling
        for low, there in ((2, (streamed, streamed)), (2, (streamed, 0.0)), (0, (streamed, 0.0)))
    ]
    forward = waits[0] / 4
    assert waits[1] - waits[0] == pytest.approx(WAITED * streamed / 10e9)
    assert waits[2] == pytest.approx(2 * forward)  # the low expert does not run


def test_a_slow_link_decides_where_it_takes_longer(files):
    part = files["t2v_A14B_expert", "fp8"]
    machine = Machine(H200, memory.sampling(part, CLIP).vram, 64 * GIB, 1.0)
    found = plan(Run(part, CLIP, forwards=(1, 0)), machine, pace.Pace({}))
    assert found.forward == pytest.approx(found.sent / 1e9) and found.sampling > found.forward


def test_seconds_as_text():
    assert [pace.duration(seconds) for seconds in (59.4, 125, 3800)] == ["59 s", "2 min 5 s", "1 h 3 min"]


def test_a_long_run_is_told_in_hours(files):
    part, machine = files["t2v_A14B_expert", "fp8"], Machine("NVIDIA GeForce RTX 3060", 12 * GIB, 64 * GIB)
    found = plan(Run(part, CLIP, forwards=(40, 40)), machine, pace.Pace({}))
    assert found.sampling > 3600 and f"sampling: about {found.sampling // 3600:.0f} h " in found.report(machine)


def test_what_is_missing_is_said(files):
    part = files["t2v_A14B_expert", "fp8"]
    small = Machine("NVIDIA GeForce RTX 3060", 3 * GIB, 2 * GIB)
    text = plan(Run(part, CLIP, forwards=(1, 0)), small, pace.Pace({})).report(small)
    assert "VRAM: only 3.0 GiB are free" in text and "RAM: only 2.0 GiB are free" in text
    unknown = Machine("A card that nobody knows", 12 * GIB, 32 * GIB)
    assert "a forward" not in plan(Run(part, CLIP), unknown, pace.Pace({})).report(unknown)


def test_files_in_any_order(files):
    wanted = (("umt5_xxl", "fp8"), ("vae21", "bf16"), ("t2v_A14B_expert", "fp8"))
    found = [files[key].checkpoint for key in wanted]
    lines = overview_of(found, Machine(), pace.Pace({}))
    assert [line.split(",")[0] for line in lines] == ["1280x720", "832x480"]
    assert overview_of(found[:2], Machine(), pace.Pace({})) == []


def test_a_model_of_another_family_is_no_second_expert(files, tmp_path):
    model = files["t2v_A14B_expert", "fp8"].checkpoint
    other = inspect(write_hollow(tmp_path / "x.safetensors", {"double_blocks.0.weight": ("F16", [8, 4])}))
    alone = overview_of([model], Machine(), pace.Pace({}))
    assert other.kind == model.kind and alone
    for found in ([model, other], [other, model], [model, files["i2v_A14B_expert", "fp8"].checkpoint]):
        assert overview_of(found, Machine(), pace.Pace({})) == alone


def test_a_header_is_read_once_for_all_sizes(files, monkeypatch):
    found = [
        files[key].checkpoint
        for key in (("t2v_A14B_expert", "fp8"), ("t2v_A14B_expert", "bf16"), ("umt5_xxl", "fp8"), ("vae21", "bf16"))
    ]
    read, of = [], Weights.of
    monkeypatch.setattr(Weights, "of", lambda checkpoint: (read.append(checkpoint.path), of(checkpoint))[1])
    assert len(overview_of(found, Machine(H200, 12 * GIB, 64 * GIB), pace.Pace({}))) == 2
    assert sorted(read) == sorted(checkpoint.path for checkpoint in found)


def test_blocks_of_every_umt5_are_fetched_as_one(tmp_path):
    """In the official spelling as in that of transformers, whose names the published ComfyUI files have."""
    shapes = shapes_of("umt5_xxl")
    table = {name: ("BF16", shape) for name, shape in shapes.items()}
    found = Part.of(inspect(write_hollow(tmp_path / "x.safetensors", table))).weights
    assert found.fetched == 2 * sum(
        math.prod(shape) for name, shape in shapes.items() if ".3." in name and len(shape) > 1 and "pos_" not in name
    )
