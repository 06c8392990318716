"""Trains Pocket Wan: python3 tools/train_pocket.py all

trains the whole family and writes its report, stage by stage, in the order of pocket/training/schedule.py; --device
cuda:0,cuda:1 spreads the stages over two GPUs. Stages can also be run by name: each reads what the stages that it needs
wrote into --out and --state. What does not end within --minutes keeps its state in --state, and goes on from there when
the same is run again. --smoke runs a few steps of each stage on any machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # of each stage: several compile side by side

import torch
from pack import import_pack

import_pack()
from wancore.pocket import models  # noqa: E402
from wancore.pocket.training import report, schedule  # noqa: E402
from wancore.pocket.training.loop import Plan, StoppedError  # noqa: E402
from wancore.pocket.training.schedule import STOPPED  # noqa: E402
from wancore.pocket.training.stages import STAGES  # noqa: E402

ALL = "all"


def run_all(args: argparse.Namespace) -> bool:
    """The whole schedule, on the devices; True when all of it is done."""
    began = time.monotonic()

    def command(stage: str, device: str, minutes: float) -> list[str]:
        fixed = [sys.executable, __file__, stage, "--wait", "--device", device, "--minutes", f"{minutes:.3f}"]
        more = ["--smoke"] if args.smoke else []
        seeds = ["--seed", str(args.seed), "--seeds", str(args.seeds)]
        return [*fixed, "--out", str(args.out), "--state", str(args.state), *seeds, *more]

    devices, deadline = args.device.split(","), began + 60 * args.minutes
    if args.beside is None:  # not asked of a stage: its process must not use the GPU before it has forked
        on_gpu = devices[0].startswith("cuda")
        args.beside = schedule.room(torch.cuda.get_device_properties(devices[0]).total_memory if on_gpu else None)
    done = schedule.run(command, devices, args.state, deadline, args.beside)
    if done:
        report.keep("how", {"how": _how(args, devices)}, args.state, args.out)
    print(
        f"all: {'done' if done else 'not done yet, run again to go on'}; {time.monotonic() - began:.0f} s", flush=True
    )
    return done


def _how(args: argparse.Namespace, devices: Sequence[str]) -> dict[str, object]:
    """What made the weights: the command, on what, and how long it took."""
    record = schedule.Record.read(args.state / "schedule.json")
    return {
        "command": f"python3 tools/train_pocket.py all --device {args.device} --beside {args.beside}",
        "seed": args.seed,
        "devices": [torch.cuda.get_device_name(each) if each.startswith("cuda") else each for each in devices],
        "seconds at work, by device": [round(seconds) for seconds in record.busy[: len(devices)]],
        "seconds, by stage": record.done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[ALL, *STAGES], metavar="STAGE")
    parser.add_argument("--out", type=Path, default=models.WEIGHTS, help="folder of the trained weights")
    parser.add_argument("--state", type=Path, default=Path("train_pocket"), help="folder of unfinished stages")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop after so long; run again to go on")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="of all: one, or two, as in cuda:0,cuda:1",
    )
    parser.add_argument("--beside", type=int, default=None, help="stages at a time on each device, of all")
    parser.add_argument("--wait", action="store_true", help="begin when a line comes in")
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--seeds", type=int, default=3, help="noises to judge each prompt with")
    parser.add_argument("--fit", action="store_true", help="end within --minutes, with fewer steps if need be")
    parser.add_argument("--smoke", action="store_true", help="a few steps on small batches: does it run")
    args = parser.parse_args()
    if args.stages == [ALL]:
        sys.exit(0 if run_all(args) else STOPPED)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    deadline = time.monotonic() + 60 * args.minutes
    if args.wait and not sys.stdin.readline():
        sys.exit(STOPPED)
    for stage in args.stages:
        torch.manual_seed(args.seed)
        began = time.monotonic()
        device = torch.device(args.device)
        if device.index is not None:
            torch.cuda.set_device(device)  # a step is recorded on the current one
        try:
            STAGES[stage](Plan(args.out, args.state, device, args.seed, deadline, args.fit, args.smoke, args.seeds))
        except StoppedError as stopped:
            print(stopped, flush=True)
            sys.exit(STOPPED)
        print(f"{stage}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
