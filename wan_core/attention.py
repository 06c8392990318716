"""One decision in one place: which kernel computes attention for a device, dtype, head size and length.

A kernel is an entry of `KERNELS` with the limits that it declares. Where several are installed and accept, a short
measured probe picks the fastest, once per place; PyTorch's own choice takes everything. All of them compute the same
sums; those in 8 bits are taken where a place asks for them alone. A host's choice (`Hooks.attention`) goes before this
table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .kernels.eager import attention as torch_attention

try:
    from .kernels import ampere8
except ImportError:  # no Triton
    ampere8 = None
try:
    from .kernels import hopper8, hopper16
except ImportError:  # no Triton, or one without Gluon
    hopper8 = hopper16 = None

PROBE_TOKENS = 8192  # longest sequence of a probe: kernels keep their order above it
PROBE_ROUNDS = 4
PROBE_CALLS = 2
AHEAD_CYCLES = 4_000_000  # of the GPU: some 2 ms
WARM_SECONDS = 0.05
NEAR = 1.3  # times the fastest: slower ones are out when it is warm


@dataclass(frozen=True)
class Place:
    """What limits are checked against."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    heads: int = 1
    queries: int = PROBE_TOKENS  # tokens, rounded up to a power of two and cut at PROBE_TOKENS
    keys: int = PROBE_TOKENS
    eight_bits: bool = False  # whether kernels that round to 8 bits are welcome


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention over q, k, v [B, L, heads * d]; None means: no limit."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    installed: Callable[[], bool] = lambda: True
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    capability: tuple[int, int] | None = None  # least CUDA compute capability
    queries: int = 1  # fewest at which it pays, as `Place` rounds them
    works: Callable[[torch.device], bool] = lambda device: True  # asked last, as it may have to try

    def accepts(self, place: Place) -> bool:
        """True where the declared limits hold."""
        if self.capability is not None and (
            place.device.type != "cuda" or torch.cuda.get_device_capability(place.device) < self.capability
        ):
            return False
        return (
            (self.devices is None or place.device.type in self.devices)
            and (self.dtypes is None or place.dtype in self.dtypes)
            and (self.head_dims is None or place.head_dim in self.head_dims)
            and place.queries >= self.queries
        )


def _one_of_torch(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    with sdpa_kernel(backend):
        return torch_attention(q, k, v, heads)


def _flash_attention_4(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return torch_attention(q, k, v, heads)  # its own gradients depend on card and version
    from flash_attn.cute import flash_attn_func  # compiles for seconds at its first call: not at import

    out = flash_attn_func(*(x.unflatten(2, (heads, -1)) for x in (q, k, v)))
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


def _hopper(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    assert hopper16 is not None
    run = hopper16.attention if hopper16.accepts(q, k, v, heads) else torch_attention  # which has gradients
    return run(q, k, v, heads)


def _works_on_hopper(device: torch.device) -> bool:
    return hopper16 is not None and hopper16.works(device)


def _ampere(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    assert ampere8 is not None
    return ampere8.attention_using_up(q, k, v, heads)


def _has_flash_attention_4() -> bool:
    if find_spec("flash_attn") is None:
        return False
    try:
        return find_spec("flash_attn.cute") is not None  # which imports flash_attn
    except Exception as error:  # noqa: BLE001  (as one that was built for another PyTorch)
        _note_refusal("flash-attention-4", error)
        return False


HALF = (torch.bfloat16, torch.float16)
TORCH = Kernel("torch", torch_attention)
KERNELS = (
    # Compiling it takes some 4 s, once on a machine.
    Kernel(
        "hopper",
        _hopper,
        lambda: hopper16 is not None,
        ("cuda",),
        HALF,
        (128,),
        (9, 0),
        PROBE_TOKENS,
        works=_works_on_hopper,
    ),
    # Importing it takes 2.3 s, once per process: pictures and tiny clips never earn that.
    Kernel(
        "flash-attention-4",
        _flash_attention_4,
        _has_flash_attention_4,
        ("cuda",),
        HALF,
        (64, 96, 128),
        (9, 0),
        PROBE_TOKENS,
    ),
    # Loading it and its first plan take a third of a second.
    Kernel("cudnn", partial(_one_of_torch, SDPBackend.CUDNN_ATTENTION), capability=(8, 0), dtypes=HALF, queries=2048),
    Kernel("flash", partial(_one_of_torch, SDPBackend.FLASH_ATTENTION), capability=(8, 0), dtypes=HALF),
    TORCH,
)
EIGHT_BITS = Kernel("8 bits", _ampere, lambda: ampere8 is not None, ("cuda",), HALF, (128,))


def choose(place: Place, kernels: tuple[Kernel, ...] = KERNELS) -> Kernel:
    """Returns the kernel that is installed, accepts the place and, on a GPU, is the fastest of these.

    Raises:
        LookupError: none accepts; cannot happen while PyTorch's is in the table.
    """
    fitting = _fit(place, kernels)
    if not fitting:
        raise LookupError(f"no attention kernel of {[kernel.name for kernel in kernels]} takes {place}")
    if len(fitting) == 1 or place.device.type != "cuda":
        return fitting[0]
    return _fastest(place, fitting)


def _fit(place: Place, kernels: tuple[Kernel, ...]) -> list[Kernel]:
    fitting = [kernel for kernel in kernels if kernel.accepts(place) and kernel.installed()]
    return [kernel for kernel in fitting if kernel.works(place.device)]


def _fastest(place: Place, kernels: list[Kernel]) -> Kernel:
    """By the least time of a few rounds, in which those that are near the fastest take turns.

    All are compiled and loaded before, and the GPU works for a while first: an idle one needs some hundredths of a
    second before its clock is what it is in a run.
    """
    call = _call(place)
    working = [kernel for kernel in kernels if _works(kernel, call)]
    first: list[float] = []
    began = time.perf_counter()
    while len(working) > 1 and time.perf_counter() - began < WARM_SECONDS:
        first = [call(kernel) for kernel in working]
    if first:
        working = [kernel for kernel, taken in zip(working, first, strict=True) if taken < NEAR * min(first)]
    if len(working) < 2:
        return working[0] if working else TORCH
    rounds = [[call(kernel) for kernel in working] for _ in range(PROBE_ROUNDS)]
    least = [min(times) for times in zip(*rounds, strict=True)]
    return working[least.index(min(least))]


def _call(place: Place) -> Callable[[Kernel], float]:
    """What runs a kernel a few times on random data and returns milliseconds.

    The GPU waits before, so that all calls are in its queue when the first one begins: starting a kernel takes the CPU
    longer or shorter, and in a run it is ahead of the GPU.
    """
    width = place.heads * place.head_dim
    generator = torch.Generator(place.device).manual_seed(0)  # its own: the run's noise stays as it is
    about: dict[str, Any] = {"device": place.device, "dtype": place.dtype, "generator": generator}
    q = torch.randn(1, place.queries, width, **about)
    k, v = torch.randn(2, 1, place.keys, width, **about).unbind(0)

    def call(kernel: Kernel) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD_CYCLES)
        start.record()
        for _ in range(PROBE_CALLS):
            kernel.run(q, k, v, place.heads)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return call


def _works(kernel: Kernel, call: Callable[[Kernel], float]) -> bool:
    """Calls it for the first time; False where it fails here after all."""
    try:
        call(kernel)
    except Exception as error:  # noqa: BLE001  (a broken optional package must not stop a run that torch can do)
        _note_refusal(kernel.name, error)
        return False
    return True


def _note_refusal(name: str, error: Exception) -> None:
    logging.info("attention kernel %s does not work here: %s", name, error)
    _REFUSED[name] = (str(error).splitlines() or [type(error).__name__])[0]


_CHOSEN: dict[Place, Kernel] = {}
_AGREED: dict[str, str] = {}  # by what a Place says of itself: the kernel that another process took
_REFUSED: dict[str, str] = {}  # kernels that are installed and failed, and how


def _chosen(place: Place) -> Kernel:
    kernel = _CHOSEN.get(place)
    if kernel is None:
        kernel = _CHOSEN[place] = _agreed(place) or choose(place, _table(place))
        logging.debug("attention: %s for %s", kernel.name, place)
    return kernel


def _table(place: Place) -> tuple[Kernel, ...]:
    """The kernels among which one is chosen: those in 8 bits stand against the one that is exact."""
    return (EIGHT_BITS, _chosen(replace(place, eight_bits=False))) if place.eight_bits else KERNELS


def _agreed(place: Place) -> Kernel | None:
    """The kernel that another process took, where it works in this one."""
    for kernel in _fit(place, _table(place)):
        if kernel.name == _AGREED.get(str(place)):
            works = place.device.type != "cuda" or _works(kernel, _call(place))
            return kernel if works else None
    return None


def choices() -> dict[str, str]:
    """What was chosen in this process so far, for `agree` in another one."""
    return {str(place): kernel.name for place, kernel in _CHOSEN.items()}


def agree(choices: dict[str, str]) -> None:
    """From here on takes what another process took: kernels of nearly the same speed round differently."""
    _AGREED.update(choices)
    for place in [place for place in _CHOSEN if choices.get(str(place), _CHOSEN[place].name) != _CHOSEN[place].name]:
        del _CHOSEN[place]


def taken() -> tuple[str, ...]:
    """What was chosen in this process so far, for reports: "cudnn for 40 heads of 128, 8192 x 512 tokens"."""
    return tuple(
        f"{kernel.name} for {place.heads} heads of {place.head_dim}, {place.queries} x {place.keys} tokens"
        for place, kernel in _CHOSEN.items()
    )


def refused() -> tuple[str, ...]:
    """Installed kernels that failed in a probe of this process, with the reason: "cudnn: No available kernel."."""
    return tuple(f"{name}: {reason}" for name, reason in _REFUSED.items())


def _rounded(tokens: int) -> int:
    return min(PROBE_TOKENS, 1 << (tokens - 1).bit_length())


def _place(q: Tensor, k: Tensor, heads: int) -> Place:
    head_dim, lengths = q.shape[2] // heads, (_rounded(q.shape[1]), _rounded(k.shape[1]))
    if q.device.type != "cuda":
        lengths = (PROBE_TOKENS, PROBE_TOKENS)  # nothing is measured: one entry serves every length
    return Place(q.device, q.dtype, head_dim, heads, *lengths)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over q [B, Lq, heads * d], k and v [B, Lk, heads * d] -> [B, Lq, heads * d]."""
    if torch.compiler.is_compiling():  # a probe cannot be traced
        return torch_attention(q, k, v, heads)
    return _chosen(_place(q, k, heads)).run(q, k, v, heads)


def attention_in_8_bits(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As `attention`, rounded as kernels/attention8.py says where a kernel does it and is faster, exact elsewhere.

    `v` may be used up: it is worth nothing afterwards.
    """
    if hopper8 is not None and hopper8.accepts(q, k, v, heads):
        return hopper8.attention(q, k, v, heads)
    if ampere8 is not None and ampere8.accepts(q, k, v, heads):
        return _chosen(replace(_place(q, k, heads), eight_bits=True)).run(q, k, v, heads)
    return attention(q, k, v, heads)
