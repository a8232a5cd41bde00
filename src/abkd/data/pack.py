"""Pack several short rows into one sequence, to save padding."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from abkd.data.collate import Collator
from abkd.data.dataset import TokenizedDataset
from abkd.data.tokenize import Example
from abkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack(dataset: TokenizedDataset, max_length: int) -> TokenizedDataset:
    """Rows packed (best fit, longest first) into sequences of at most ``max_length`` tokens.

    ``segments`` gives the row that each token belongs to. The collator masks attention between segments and restarts
    the positions of each, so every row has the same loss as on its own. Raises DataError for a row that does not fit,
    and for rows that the two models do not read alike, such as those with a context for the teacher.
    """
    if more := sorted(dataset.columns - {"input_ids", "trained"}):
        raise DataError(
            f"packing needs rows that both models read alike, but {dataset.name} also has {', '.join(more)}: "
            "set packing: false"
        )
    if max(dataset.lengths) > max_length:
        longest = max(dataset.lengths)
        raise DataError(f"packing needs rows of at most {max_length} tokens, got one of {longest} in {dataset.name}")
    return dataset.joined(_best_fit(dataset.lengths, max_length))


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most ``capacity``; each in order, groups by their first index."""
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # heap of groups for each amount of free room
    rooms: list[int] = []  # amounts of room that some group has, sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect.bisect_left(rooms, lengths[index])
        if found < len(rooms):
            room = rooms[found]
            group = heapq.heappop(by_room[room])
            if not by_room[room]:
                rooms.pop(found)
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        left = room - lengths[index]
        if not by_room.setdefault(left, []):
            bisect.insort(rooms, left)
        heapq.heappush(by_room[left], group)
    return sorted(sorted(group) for group in groups)


def _join(examples: Sequence[Example]) -> Example:
    ids, trained, segments = [], [], []
    for segment, example in enumerate(examples):
        ids += example["input_ids"]
        trained += example["trained"]
        segments += [segment] * len(example["input_ids"])
    return Example(input_ids=ids, trained=trained, segments=segments)


def check_packing(model: Any, max_length: int, positions: int | None = None) -> None:
    """Check that packed rows do not affect each other in this model, by running rows packed and alone.

    Attention kernels that ignore a block mask, state-space layers and sliding windows shorter than ``max_length`` all
    fail here, whatever their names, as do models that do not accept such a mask. The tolerance is the square root of
    the machine epsilon of the model's dtype, relative to the largest output.

    Args:
        model: a causal language model.
        max_length: tokens of a packed sequence.
        positions: maximum number of tokens of a row, if the model has a table of positions.

    Raises:
        ConfigError: packed rows affect each other, or the model cannot be run on them.
    """
    rows = [_probe(size, model.get_input_embeddings().num_embeddings) for size in _sizes(max_length, positions)]
    training = model.training
    model.eval()  # dropout would hide the difference
    try:
        alone, packed = torch.cat([_outputs(model, row) for row in rows]), _outputs(model, _join(rows))
    except ConfigError:
        raise
    except Exception as error:  # raised by the model's code: it does not support packing
        raise ConfigError(
            f"{type(model).__name__} cannot be run on packed rows ({' '.join(str(error).split())[:200]}): set packing: "
            "false (group_by_length: true also saves padding)"
        ) from error
    finally:
        model.train(training)
    error = ((packed - alone).abs().max() / alone.abs().max()).item()
    if not error <= torch.finfo(model.dtype).eps ** 0.5:
        raise ConfigError(
            f"packing changes what {type(model).__name__} computes (by {error:.1e} of its largest output): its layers "
            "do not keep packed rows apart. Set packing: false, or load the model with attn_implementation: sdpa"
        )


def _sizes(max_length: int, positions: int | None) -> list[int]:
    """Lengths of rows that fill a sequence: a long and a short one, or several if ``positions`` limits their length."""
    if positions is None or max_length <= positions:
        short = max(1, min(8, max_length // 2))
        return [max_length - short, short]
    whole, rest = divmod(max_length, positions)
    return [positions] * whole + [rest] * (rest > 0)


def _probe(size: int, vocabulary: int) -> Example:
    ids = torch.randint(vocabulary, (size,), generator=torch.Generator().manual_seed(size)).tolist()
    return Example(input_ids=ids, trained=[False] + [True] * (size - 1))


@torch.no_grad()
def _outputs(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """Logits at all positions [T, V] in float32."""
    view = Collator(pad_token_id=0)([example])["batch"].to(model.device).student
    return model(**view.inputs_for(model), use_cache=False).logits[0].float()
