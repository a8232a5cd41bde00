"""The code of a launched test's processes: ``two_processes.py OUTPUT_DIR VARIANT...`` (see test_t08_processes.py)."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate import Accelerator, DistributedType, PartialState
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from abkd.data import stream_rows
from image_parts import image_trainer, pictures
from training_parts import llama, rows, teacher, trainer, write_rows

STEP = {"max_grad_norm": 1.0, "learning_rate": 3e-3, "max_steps": 5, "eval_strategy": "steps", "eval_steps": 2}
BUCKETS = {"ddp_bucket_cap_mb": 1, "ddp_find_unused_parameters": True, "ddp_broadcast_buffers": False}
TERMS = """[
    Term(Interpolated(ForwardKL(), t=TAID(rate=0.5)), row_weight=Hardest(LossSteered(warmup=0.0, tolerance=0.0)),
         temperature=ByHardness()),
    FitNet('hidden.1', 'hidden.2', projector=True),
]"""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain text by length": {"lm_coef": 0.7, "group_by_length": True, **BUCKETS},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "resumed": {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 0},
    "terms": {"terms": TERMS, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "resumed terms": {"terms": TERMS, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 0},
    "streamed": {},
    "written": {"source": "Union(Dataset(), StudentSamples(temperature=0))", "max_completion_length": 5},
}
IMAGES = {"images": {"augmentation": "[RandomCrop(padding=1), HorizontalFlip(), Mixup(alpha=0.4)]", "ce_weight": 0.5}}
SHARDED: dict[str, dict[str, Any]] = {
    "layers": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    "the head on its own": {"transformer_layer_cls_to_wrap": ["Linear"]},
    "into shards": {"state_dict_type": "SHARDED_STATE_DICT", "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def build(path: Path, variant: str, world: int, **more: Any):
    """The same step for any number of processes: 4 of 10 rows, so the last step of an epoch has 2; 7 rows held out."""
    options = {"per_device_train_batch_size": 2, **STEP, **{**VARIANTS, **IMAGES}[variant], **more}
    options["per_device_train_batch_size"] *= 2 // world
    if variant in IMAGES:
        return image_trainer(path / variant, data=pictures(10), eval_dataset=pictures(7, seed=1), **options)
    data: Any = rows(10)
    if variant == "streamed":
        file = path / f"rows-{world}-{os.environ.get('RANK', '0')}.jsonl"
        write_rows(file, data)
        data = stream_rows(file)
    folder = path / variant.replace(" ", "_")
    return trainer(folder, llama(0), data=data, teach=teacher(), eval_dataset=rows(7), **options)


def sharding_accelerator(**options: Any) -> Accelerator:
    """accelerate shards only if it finds accelerators; what it then does is the same on CPUs."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Accelerator(**options)


def main() -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(550, exit=True)  # shows where a process waits for the other
    path, variants = Path(sys.argv[1]), sys.argv[2:]
    how = os.environ.get("SHARDED")
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, **SHARDED[how]}} if how else {}
    if how:
        transformers.trainer.Accelerator = sharding_accelerator
    for variant in variants:
        world = int(os.environ["WORLD_SIZE"])
        made = build(path, variant, world, **fsdp)
        assert made.is_fsdp_enabled == bool(how)
        if variant.startswith("resumed"):
            made.train(resume_from_checkpoint=(Path(made.args.output_dir) / "checkpoint-2").is_dir())
        else:
            made.train()
        assert any(isinstance(parameter, DTensor) for parameter in made.model.parameters()) == bool(how)
        if variant == "plain text by length" and not how:
            ddp: Any = made.model_wrapped
            assert (ddp.bucket_bytes_cap, ddp.find_unused_parameters, ddp.broadcast_buffers) == (2**20, True, False)
        metrics = made.evaluate()
        made.save_model()
        state = made.accelerator.get_state_dict(made.model)
        if made.is_world_process_zero():
            save_file({k: v.contiguous() for k, v in state.items()}, Path(made.args.output_dir) / "weights.safetensors")
            (Path(made.args.output_dir) / "eval.json").write_text(json.dumps(metrics))
        made.accelerator.wait_for_everyone()
    # Not through the interpreter's end: gloo's threads may want its lock then, and hang or abort what is done.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
