"""Completions of prompts in batches: KV cache, padding on the left, EOS kept."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from abkd.errors import ConfigError, DataError
from abkd.generation._draw import Below, Draw, as_bytes, streams
from abkd.generation._sampling import CUTS, Sampling, settle, warpers
from abkd.models.positions import first_position

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class Completion(NamedTuple):
    """A generated completion: its token ids, including EOS if there is one, and ``finished``, whether there is."""

    ids: list[int]
    finished: bool


def write_completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int | Sequence[int],
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    generation_kwargs: Mapping[str, object] | None = None,
    synced: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> list[Completion]:
    """Generate a completion of each prompt, in the order of the prompts.

    A completion does not depend on the rest of its batch, up to the model's rounding, whether decoded greedily or
    sampled: each prompt has its own random numbers, a function of ``seed``, its tokens, and how often it occurred
    before in ``prompts``. Beam search with sampled continuations is the exception and depends on the batch.
    The model's mode and the caller's RNG state are unchanged.

    Args:
        model: a causal language model of transformers, also one wrapped by PEFT.
        tokenizer: provides the EOS and padding tokens if the model does not.
        prompts: token ids, ready for the model: chat template and generation prompt included.
        sampling: the sampling parameters.
        max_new_tokens: the maximum length of a completion; one number, or one for each prompt.
        classes: tokens from this id on (the padding of the head) are never generated.
        seed: the seed of the sampling; not used in greedy decoding.
        batch_size: prompts per batch; prompts of similar length share a batch.
        generation_kwargs: settings for ``GenerationConfig``, which take precedence over ``sampling``.
        synced: all processes run the same number of forwards (sharded models); each needs the same number of prompts.
        progress: called with (prompts done, total prompts) after every batch.

    Raises:
        DataError: an empty prompt.
        ConfigError: a limit or ``batch_size`` below 1, or unknown ``generation_kwargs``.
    """
    written: dict[int, Completion] = {}
    for batch in completions(
        model,
        tokenizer,
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        classes=classes,
        seed=seed,
        batch_size=batch_size,
        generation_kwargs=generation_kwargs,
        synced=synced,
    ):
        written |= batch
        if progress is not None:
            progress(len(written), len(prompts))
    return [written[i] for i in range(len(prompts))]


def completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int | Sequence[int],
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    generation_kwargs: Mapping[str, object] | None = None,
    synced: bool = False,
) -> Iterator[dict[int, Completion]]:
    """:func:`write_completions`, one batch at a time: prompt indices to completions. Longest prompts first."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(prompts, limits, batch_size)
    sampling, rest = settle(sampling, generation_kwargs)
    writer = _Writer(model, tokenizer, sampling, rest, classes, synced)
    numbers = streams(prompts, seed)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [prompts[i] for i in chosen]
        with _generating(writer.model, seed, batch):
            found = writer.batch(batch, [limits[i] for i in chosen], [numbers[i] for i in chosen])
        yield dict(zip(chosen, found, strict=True))


def _check(prompts: Sequence[Sequence[int]], limits: Sequence[int], batch_size: int) -> None:
    if len(limits) != len(prompts):
        raise ConfigError(f"max_new_tokens must be one limit per prompt, got {len(limits)} for {len(prompts)} prompts")
    if min(limits, default=1) < 1 or batch_size < 1:
        raise ConfigError(
            f"max_new_tokens and batch_size must be at least 1, got {min(limits, default=1)} and {batch_size}."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {number} is empty; a model needs at least one token to start from.")


@contextlib.contextmanager
def _generating(model: Any, seed: int, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
    """Eval mode, no gradient, and torch's generator seeded by the seed and the batch."""
    training, own = model.training, model.generation_config
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(random.Random(f"{seed}/".encode() + b"".join(map(as_bytes, prompts))).getrandbits(63))
            model.eval()
            yield
    finally:
        model.generation_config = own
        model.train(training)


@dataclass
class _Writer:
    """A model with its settings, which completes one batch at a time."""

    model: Any
    tokenizer: Any
    sampling: Sampling
    rest: Mapping[str, object]
    classes: int | None
    synced: bool

    def __post_init__(self) -> None:
        if hasattr(self.model, "get_base_model"):  # PEFT: the adapters are inside
            self.model = self.model.get_base_model()
        self.first_position = first_position(self.model)
        own = getattr(self.model.generation_config, "eos_token_id", None)
        ends = {*([] if own is None else [own] if isinstance(own, int) else own), self.tokenizer.eos_token_id}
        self.ends = sorted(ends - {None})
        padding = self.tokenizer.pad_token_id
        self.padding = padding if padding is not None else self.ends[0] if self.ends else 0

    def batch(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], numbers: Sequence[random.Random]
    ) -> list[Completion]:
        """The completions of one batch of prompts."""
        longest, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[*[self.padding] * (longest - len(prompt)), *prompt] for prompt in prompts], device=device)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        mask = (torch.arange(longest, device=device) >= longest - lengths).long()
        room = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        settings = self._settings(max(limits))
        # generate() would take unset values from the model's own config: a top-k, a penalty, a length
        self.model.generation_config = settings
        with _positions(self.model, self.first_position, room):
            try:
                written = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=settings,
                    logits_processor=self._processors(numbers),
                    synced_gpus=self.synced,
                )
            except (ValueError, TypeError, IndexError) as error:
                if not self.rest:
                    raise
                raise ConfigError(f"generation_kwargs {dict(self.rest)} cannot be used: {error}") from error
        return [self._cut(row, limit) for row, limit in zip(written[:, longest:].tolist(), limits, strict=True)]

    def _settings(self, most: int) -> GenerationConfig:
        """A generation config that takes nothing from the model's own."""
        from transformers import GenerationConfig

        settings: dict[str, object] = {name: value for name, value in self.rest.items() if name not in CUTS}
        sampling = self.sampling
        settings |= {"do_sample": False, "num_beams": sampling.num_beams}
        if self._by_transformers:
            cuts = {name: self.rest[name] for name in CUTS if name in self.rest}
            chosen = {"temperature": float(sampling.temperature), "top_k": sampling.top_k, "top_p": sampling.top_p}
            settings |= {**cuts, **chosen, "do_sample": True}
        return GenerationConfig(
            max_new_tokens=most, eos_token_id=self.ends or None, pad_token_id=self.padding, use_cache=True, **settings
        )

    def _processors(self, numbers: Sequence[random.Random]) -> list[Below | Draw]:
        below: list[Below | Draw] = [] if self.classes is None else [Below(self.classes)]
        if not self.sampling.draws or self._by_transformers:
            return below
        return [*below, Draw(numbers, warpers(self.sampling, self.rest))]

    @property
    def _by_transformers(self) -> bool:
        """Whether transformers samples: per-prompt random numbers cannot be used with beams."""
        return self.sampling.draws and self.sampling.num_beams > 1

    def _cut(self, row: list[int], limit: int) -> Completion:
        """A row up to its first EOS token, found by position, because EOS may also be the padding."""
        end = next((i for i, token in enumerate(row[:limit]) if token in self.ends), None)
        return Completion(row[:limit], finished=False) if end is None else Completion(row[: end + 1], finished=True)


@contextlib.contextmanager
def _positions(model: Any, first: int, room: int) -> Iterator[None]:
    """Shift position ids to start at the model's ``first`` one; generate() counts from 0.

    Finished rows stay in the batch, and their positions would run beyond the model's limit: they are clamped.
    """

    def settled(module: torch.nn.Module, args: object, kwargs: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        positions = kwargs.get("position_ids")
        return args, kwargs if positions is None else {**kwargs, "position_ids": positions.clamp(max=room - 1) + first}

    handle = model.register_forward_pre_hook(settled, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
