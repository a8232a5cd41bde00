"""From a data file to batches of rows: load, check, tokenise, pack, order, collate."""

from abkd.data.collate import Batch, Collator, View
from abkd.data.completion import padding_example, prompt_of, teacher_prompt_of, with_completion
from abkd.data.dataset import TokenizedDataset, prepare_dataset, prepare_stream, pretraining_chunks
from abkd.data.load import load_rows
from abkd.data.pack import check_packing, pack
from abkd.data.rows import Rows, fingerprint
from abkd.data.sampler import LengthGroupedSampler
from abkd.data.show import describe_sample, describe_start
from abkd.data.split import split_held_out
from abkd.data.stream import RowStream, StreamedDataset, stream_rows
from abkd.data.template_choice import choose_template, say_of_templates
from abkd.data.tokenize import Example
from abkd.data.vocabulary import check_same_tokenizer, shared_vocabulary_size

__all__ = [
    "Batch",
    "Collator",
    "Example",
    "LengthGroupedSampler",
    "RowStream",
    "Rows",
    "StreamedDataset",
    "TokenizedDataset",
    "View",
    "check_packing",
    "check_same_tokenizer",
    "choose_template",
    "describe_sample",
    "describe_start",
    "fingerprint",
    "load_rows",
    "pack",
    "padding_example",
    "prepare_dataset",
    "prepare_stream",
    "pretraining_chunks",
    "prompt_of",
    "say_of_templates",
    "shared_vocabulary_size",
    "split_held_out",
    "stream_rows",
    "teacher_prompt_of",
    "with_completion",
]
