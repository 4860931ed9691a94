"""Recognise a model's architecture: find the one row of the table that fits it. The result is the same in every
precision.

A row fits if two checks pass.

1. *Wiring.* The model's own forward runs with stand-ins for the modules that the row names. The stand-ins do not
    compute
   but return random whole numbers in float32, small and large, with an outlier dimension. Everything that the model
   itself does (additions, factors, passing activations to modules) is then free of rounding, whatever its precision.
   Every module must be called exactly once, with exactly the input that the row says, and the logits must equal the
   row's.
2. *Modules.* The row calls the modules on the model's own activations, in the model's own precision. They must
   reproduce the model's own activations to the bit, except for the order in which three terms are added.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scalar_sae.errors import UserError
from scalar_sae.lm.anatomy import DUMMY_TOKENS, Anatomy, dummy
from scalar_sae.lm.architectures import ARCHITECTURES
from scalar_sae.lm.layers import SiteState

DOCS = "docs/models.md"
SCALES = (2.0**-10, 1.0, 2.0**10)
"""Scales of the random activations."""
OUTLIER = 64
"""Factor by which the outlier dimension exceeds the others."""
PROMPTS = 2
ORDER = 2
"""Sums of three terms in different orders differ by at most 2 eps times the sum of the terms' magnitudes."""


def dissect(hf: Any, name: str) -> Anatomy:
    """Take a causal language model apart along the one architecture that fits it.

    Raises:
        UserError: no row of the table fits, or several do; or the weights or activations are not finite.
    """
    if not callable(getattr(hf, "get_decoder", None)) or hf.get_output_embeddings() is None:
        raise UserError(f"{name}: {type(hf).__name__} is not a causal language model of transformers")
    decoder = hf.get_decoder()
    tried: list[str] = []
    fitting: list[Anatomy] = []
    for architecture in ARCHITECTURES:
        if architecture.missing(decoder):
            continue
        try:
            anatomy = Anatomy(hf, architecture)
            difference = _difference(anatomy)
        except Exception as error:  # modules of these names with another signature
            difference = f"its modules do not fit together so ({_first_line(error)})"
        else:
            if difference is None:
                fitting.append(anatomy)
        tried.append(f"{architecture.name}: {difference}")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        rows = " and ".join(anatomy.architecture.name for anatomy in fitting)
        raise UserError(f"{name}: {hf.config.model_type} fits the architectures {rows} alike; one must be told apart")
    raise UserError(_why_not(hf, name, tried))


def _why_not(hf: Any, name: str, tried: list[str]) -> str:
    """The reason why no row fits, for the error message."""
    damaged = next((weight for weight, values in hf.named_parameters() if not values.isfinite().all()), None)
    if damaged is not None:
        return f"{name}: {damaged} holds values that are not finite; the model's weights are damaged"
    if not tried:
        decoder = hf.get_decoder()
        nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.missing(decoder)))
        tried = [f"nearest is {nearest.name}, but there is no {', '.join(nearest.missing(decoder))}"]
    elif _overflows(hf):
        return (
            f"{name}: its activations do not fit {next(hf.parameters()).dtype}; load it with dtype bfloat16 or float32"
        )
    return (
        f"{name}: {hf.config.model_type} is not an architecture that is understood ({'; '.join(tried)}); "
        f"{DOCS} shows how to add one in ten lines"
    )


@torch.no_grad()
def _overflows(hf: Any) -> bool:
    """Whether the model runs but its logits are not finite."""
    try:
        logits = hf(dummy(hf, PROMPTS, DUMMY_TOKENS), use_cache=False).logits
    except Exception:  # the model's own forward fails; `tried` says why
        return False
    return not bool(logits.isfinite().all())


class _Forward(NamedTuple):
    """The model's own forward on random prompts."""

    into: list[Tensor]
    """The input of each layer."""
    outputs: list[Tensor]
    """The output of each layer."""
    logits: Tensor


@torch.no_grad()
def _own_forward(anatomy: Anatomy, instead: Sequence[Tensor] | None = None) -> _Forward:
    """Run the model. `instead` replaces the input of each layer."""
    into: list[Tensor] = []
    outputs: list[Tensor] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["hidden_states"]
        into.append(x)
        if instead is not None:
            x = instead[len(into) - 1].to(x.device, copy=True)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    def end(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as undo:
        for block in anatomy.blocks:
            undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(end).remove)
        logits = anatomy.hf(dummy(anatomy.hf, PROMPTS, DUMMY_TOKENS), use_cache=False).logits
    return _Forward(into, outputs, logits)


@torch.no_grad()
def _difference(anatomy: Anatomy) -> str | None:
    """A difference between the model and a row, checking the wiring first; None if the row fits."""
    wirings = (_Wiring(anatomy, scale).difference() for scale in SCALES)
    return next((found for found in wirings if found), None) or next(_in_own_precision(anatomy), None)


class _Wiring:
    """The model and the row, both with the same stand-ins for the row's modules.

    Args:
        anatomy: the model taken apart along the row.
        scale: scale of the stand-ins' outputs.
    """

    def __init__(self, anatomy: Anatomy, scale: float) -> None:
        self._anatomy = anatomy
        names = {module: name for name, module in anatomy.hf.named_modules()}
        self._names = {part: names.get(part, "the unembedding") for part in anatomy.parts}
        generator = torch.Generator().manual_seed(0)

        def whole_numbers(width: int) -> Tensor:
            shape = PROMPTS, DUMMY_TOKENS, width
            numbers = torch.randint(-8, 9, shape, generator=generator, device="cpu").float()
            numbers[..., width // 2] *= OUTLIER
            return numbers * scale

        self._outputs = {part: whole_numbers(anatomy.width(part)) for part in anatomy.parts}
        self._inputs = [whole_numbers(anatomy.width(anatomy.blocks[0])) for _ in anatomy.blocks]
        self._handed: dict[nn.Module, list[Tensor]] = defaultdict(list)

    def difference(self) -> str | None:
        """A difference between the model's wiring and the row's; None if they agree."""
        with self._anatomy.stood_in(self._stub):
            return next(self._differences(), None)

    def _differences(self) -> Iterator[str]:
        model = _own_forward(self._anatomy, self._inputs)
        own, self._handed = self._handed, defaultdict(list)
        yield from (f"{self._names[part]} is called {len(own[part])} times" for part in own if len(own[part]) > 1)
        for number, (layer, x) in enumerate(zip(self._anatomy.layers, self._inputs, strict=True)):
            *_, (_, here) = layer.steps("resid_pre", SiteState(x, None))
            yield from self._unlike(own)
            if not torch.equal(_rows(here.x), _rows(model.outputs[number])):
                yield f"layer {number} puts out something else"
            if number and not torch.equal(_rows(model.into[number]), _rows(model.outputs[number - 1])):
                yield f"layer {number} reads something else than what layer {number - 1} puts out"
        ours = self._anatomy.unembed(model.outputs[-1].to(model.logits.device))
        yield from self._unlike(own)
        if not _within(ours, model.logits, 4 * model.logits.abs()):
            yield "the logits are computed in another way"

    def _unlike(self, own: dict[nn.Module, list[Tensor]]) -> Iterator[str]:
        """Of the modules that the row has just called, those to which the model passes another input."""
        for part, handed in self._handed.items():
            if not own[part]:
                yield f"{self._names[part]} is not called"
            elif not all(torch.equal(x, own[part][0]) for x in handed):
                yield f"{self._names[part]} reads something else"
        self._handed.clear()

    def _stub(self, part: nn.Module, given: dict[str, Any]) -> Tensor:
        names = self._anatomy.architecture
        of_attention = part in self._anatomy.attentions
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        read = [tensors[name] for name in names.attn_inputs] if of_attention else list(tensors.values())[:1]
        self._handed[part].append(torch.stack([_rows(x) for x in read]))
        output = self._outputs[part].to(read[0].device, copy=True).view(*read[0].shape[:-1], -1)
        return output + tensors[names.stream] if names.stream in tensors else output


def _in_own_precision(anatomy: Anatomy) -> Iterator[str]:
    """Yield where the modules, called as the row says, do not reproduce the model's own activations."""
    own = _own_forward(anatomy)
    for number, (layer, x, output) in enumerate(zip(anatomy.layers, own.into, own.outputs, strict=True)):
        at = dict(layer.steps("resid_pre", SiteState(x, None)))
        terms = x.abs() + at["attn_out"].x.abs() + at["mlp_out"].x.abs()
        if not _within(at["resid_post"].x, output, ORDER * terms):
            off, size = (at["resid_post"].x - output).abs().max().item(), output.abs().max().item()
            yield f"layer {number} computes something else (off by {off:.1g} of {size:.1g})"
    if not _within(anatomy.unembed(own.outputs[-1]), own.logits, ORDER * own.logits.abs()):
        yield "the logits are computed in another way"


def _rows(x: Tensor) -> Tensor:
    """The activations as one row per token, on the CPU."""
    return x.reshape(-1, x.shape[-1]).cpu()


def _within(ours: Tensor, theirs: Tensor, sizes: Tensor) -> bool:
    """Whether two computations of the same tensor differ by rounding only: elementwise by at most eps times `sizes`."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    close = (ours - theirs).abs() <= torch.finfo(theirs.dtype).eps * sizes
    return bool(((ours == theirs) | close).all())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
