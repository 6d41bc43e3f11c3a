"""What training may begin from: an adapter that exists, bound to the layers of a denoiser and put onto them."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from peft import PeftModel
from torch import Tensor, nn

from rayvideo import sections
from rayvideo.models import layouts
from rayvideo.models.base import ModelError, VideoModel
from rayvideo.models.experts import EXPERTS, Experts
from rayvideo.models.foreign import Pair, read, weights_of
from rayvideo.models.lora import ADAPTABLE, PREFIX, last_words, lora_parameters, pairs, refuse_untrained
from rayvideo.storage import read_bytes

logger = logging.getLogger(__name__)

OPTION = "model.lora.start"


def begin(adapted: PeftModel, options: sections.Lora, family: type[VideoModel], within: str | None) -> None:
    """Put the adapter that `options.start` names in a fresh one's place: it computes what it did where it was made.

    Nothing happens without that option. Pairs that the adapter does not have stay fresh. On the meta device it is only
    checked.

    Args:
        adapted: A denoiser of the family with what `add_lora` made of the same options.
        within: The one of two experts that has the adapter.

    Raises:
        ModelError: it can't be read, is more than plain LoRA, or is of other layers, another size or another rank.
    """
    begun: dict[str, Pair] = {}
    for named, path in _files(options):
        what = f"{OPTION}: {path}"
        try:
            found = read(path, family)
        except ModelError as error:
            raise ModelError(f"{OPTION}: {error}") from error
        denoiser = adapted.get_base_model()
        expert = _expert(what, found, family, named, within) if isinstance(denoiser, Experts) else None
        if named is not None and expert is None:
            raise ModelError(f"{OPTION} names the expert {named!r}, but this model has one denoiser: give a path alone")
        begun |= _bound(what, found, lora_parameters(adapted), _table(denoiser, family, expert))
    if not begun:
        return
    _refuse_misfits(begun, pairs(adapted), options, within)
    logger.info(
        "adapter: %d layers begin from %s, %d start fresh", len(begun), OPTION, len(pairs(adapted)) - len(begun)
    )
    weights, scale = lora_parameters(adapted), options.alpha / options.rank
    for layer, pair in begun.items():
        for matrix, values in (("A", pair.a), ("B", pair.scale / scale * pair.b)):
            weight = weights[_parameter(layer, matrix)]
            if weight.device.type != "meta":
                weight.data.copy_(values)


def digests(options: sections.Lora) -> dict[str, str]:
    """SHA-256 of the weights that `options.start` names, by the name of a tag: `start`, or `start.low`."""
    found = {}
    for expert, path in _files(options):
        content = read_bytes(weights_of(path))
        found["start" if expert is None else f"start.{expert}"] = hashlib.sha256(content).hexdigest()
    return found


def _files(options: sections.Lora) -> list[tuple[str | None, str]]:
    """Experts and path or URI of each one's adapter; None beside the one of all."""
    if isinstance(options.start, dict):
        return [*options.start.items()]
    return [] if options.start is None else [(None, options.start)]


def _expert(
    what: str, names: Iterable[str], family: type[VideoModel], named: str | None, within: str | None
) -> str | None:
    """The one of two experts that a file is for; None: its names say of each layer whose it is."""
    telling = (layouts.second(family, ""), *(f"{PREFIX}{expert}." for expert in EXPERTS))
    if named is None and any(name.startswith(telling) for name in names):
        return None
    if named is None and within is None:
        raise ModelError(f"{what}: for which of the two experts? Set {OPTION} to {{high: FILE, low: FILE}}, or to one")
    return named or within


def _bound(
    what: str, found: Mapping[str, Pair], weights: Mapping[str, Tensor], table: Mapping[str, str]
) -> dict[str, Pair]:
    """The pairs by the names that the layers have in the denoiser.

    Args:
        weights: The fresh adapter's.
        table: What `_table` gave.

    Raises:
        ModelError: naming, of all pairs that bind, the first of another size; else the first that binds to nothing.
    """
    bound: dict[str, Pair] = {}
    for name, pair in found.items():
        if name not in table:
            continue
        layer = table[name]
        if layer in bound:
            raise ModelError(f"{what}: {name!r} is the second pair for the layer {layer!r}")
        bound[layer] = pair
        for matrix, values, rank in (("A", pair.a, 0), ("B", pair.b, 1)):
            fresh = weights.get(_parameter(layer, matrix))
            if fresh is not None and _without(rank, values) != _without(rank, fresh):
                raise ModelError(
                    f"{what}: {name!r} has a matrix {matrix} {list(values.shape)}, but the layer takes "
                    f"{list(fresh.shape)}: the adapter is of another model, or of another size of this one"
                )
    if lost := [name for name in found if name not in table]:
        ((example, _),) = Counter(table.values()).most_common(1)
        close = difflib.get_close_matches(lost[0], table, n=1)
        raise ModelError(
            f"{what}: no layer is called {lost[0]!r}{f'; did you mean {close[0]!r}?' if close else ''} ({len(lost)} of "
            f"{len(found)} names bind to nothing). What a layer may be called, by one of them: "
            f"{', '.join(name for name, layer in table.items() if layer == example)}"
        )
    return bound


def _parameter(layer: str, matrix: str) -> str:
    """What PEFT calls a layer's matrix A or B in the model."""
    return f"{PREFIX}{layer}.lora_{matrix}.default.weight"


def _without(rank: int, matrix: Tensor) -> tuple[int, ...]:
    """A matrix's shape but for the dimension that is its rank."""
    return (*matrix.shape[:rank], *matrix.shape[rank + 1 :])


def _table(denoiser: nn.Module, family: type[VideoModel], expert: str | None) -> dict[str, str]:
    """What a file may call the layers -> their names in the denoiser; with an expert, those of that one alone."""
    table = {}
    for layer in _layers(denoiser):
        own, _, inner = layer.partition(".") if isinstance(denoiser, Experts) else (None, "", layer)
        if expert not in (None, own):
            continue
        names = [f"{PREFIX}{layer}"]
        if own == expert:
            names += [f"{PREFIX}{inner}", *layouts.names(family, inner)]
        elif own == EXPERTS[0]:
            names.append(layouts.diffusers(family, inner))
        if own == EXPERTS[1]:
            names.append(layouts.second(family, inner))
        table.update(dict.fromkeys(names, layer))
    return table


def _layers(denoiser: nn.Module) -> list[str]:
    """Names of the layers that may have a pair, whether they have one or not."""
    return [
        name.removesuffix(".base_layer")
        for name, module in denoiser.named_modules()
        if isinstance(module, ADAPTABLE) and ".lora_" not in name
    ]


def _refuse_misfits(
    begun: Mapping[str, Pair], trained: Sequence[str], options: sections.Lora, within: str | None
) -> None:
    """Refuse layers that the recipe gives no pair, a rank that is not the recipe's, and what changes nothing."""
    if within is not None and (other := [layer for layer in begun if not layer.startswith(f"{within}.")]):
        raise ModelError(
            f"{OPTION} has pairs for the expert {other[0].partition('.')[0]!r}, and {within!r} alone is trained: set "
            f"model.train to both, or {OPTION} to {{{within}: FILE}}"
        )
    if more := [layer for layer in begun if layer not in trained]:
        targets = dict.fromkeys([*options.targets, *map(last_words, more)])
        raise ModelError(
            f"{OPTION} has pairs for {len(more)} layers that model.lora.targets leaves out, such as {more[0]!r}: set "
            f"model.lora.targets=[{','.join(targets)}]"
        )
    ranks = sorted({len(pair.a) for pair in begun.values()})
    if ranks != [options.rank]:
        mend = "only one rank can be trained" if len(ranks) > 1 else f"set model.lora.rank={ranks[0]}"
        raise ModelError(f"{OPTION} is of rank {', '.join(map(str, ranks))}, not {options.rank}: {mend}")
    refuse_untrained(OPTION, {f"{layer}.lora_B.weight": pair.b for layer, pair in begun.items()})
