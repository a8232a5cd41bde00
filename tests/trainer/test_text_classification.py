"""Text classification: the loss is that of images, padding and tokenizers change nothing, resume is exact, errors."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from abkd import DistillConfig, DistillTrainer, notation
from abkd.cli import app
from abkd.data.images import ImageCollator
from abkd.data.texts import TextCollator
from abkd.errors import ConfigError, DataError, VocabularyError
from abkd.models.sequence import SequenceRows
from abkd.models.vision import Classifier, ImageRows, Preparation
from abkd.objective import Objective
from abkd.ops import plan_chunks
from abkd.teachers import LiveReader
from abkd.trainer._distillation import DistillationLoss
from task_parts import losses
from text_class_parts import (
    FAMILIES,
    NAMES,
    WORDS,
    classifier,
    save,
    teacher,
    text_trainer,
    texts,
    tokenizer,
    write_texts,
)
from training_parts import EVERY_THIRD, StopAfter, gap, weights

CLASSES = 7


# ---- the same rows as images


class Table(nn.Module):
    """Logits that are parameters, one row for each input."""

    def __init__(self, seed: int, count: int = 6) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(3 * torch.randn(count, CLASSES, generator=draw))


class OfPixels(Table):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.logits[(pixels[:, 0, 0, 0] * 255).round().long() % len(self.logits)]


class OfTokens(Table):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.config = SimpleNamespace(num_labels=CLASSES, problem_type=None, pad_token_id=None, id2label={})
        self.get_input_embeddings = lambda: SimpleNamespace(weight=torch.zeros(340, 1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids[:, 0]])


@pytest.mark.parametrize(
    "divergence", ["ForwardKL()", "AlphaBeta(0.8, 0.3)", "Standardized(AlphaBeta(0.9, 0.1), 2.0)", "DKD()", "DIST()"]
)
@pytest.mark.parametrize("options", [{"ce_weight": 0.5, "temperature": 2.0}, {}])
def test_the_same_logits_give_the_same_loss_and_gradient_as_images_to_the_bit(divergence, options):
    labels = [3, 0, 6, 2, 2, 5]
    pictures = [
        {"pixels": torch.full((3, 1, 1), i, dtype=torch.uint8), "labels": [(label, 1.0)], "is_padding": False}
        for i, label in enumerate(labels)
    ]
    written = [{"input_ids": [i, *[9] * i], "label": [label]} for i, label in enumerate(labels)]
    images = [ImageRows(Classifier(OfPixels(seed), Preparation()), side=1) for seed in (0, 1)]
    of_texts = [SequenceRows(OfTokens(seed), tokenizer()) for seed in (0, 1)]
    found = []
    for (student, teach), batch in (
        (images, ImageCollator()(pictures)["batch"]),
        (of_texts, TextCollator(2, 2)(written)["batch"]),
    ):
        objective = Objective(divergence=notation.parse(divergence), **options).open()  # type: ignore[arg-type]
        task = DistillationLoss(student, LiveReader(teach), objective, plan_chunks(6, CLASSES, torch.device("cpu")))
        loss = losses(task, batch)["loss"]
        found.append((loss, *torch.autograd.grad(loss, [student.model.logits])))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0


# ---- padding and tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    rows, ids = (
        SequenceRows(classifier(0, family), tokenizer()),
        [tokenizer()(row["text"])["input_ids"] for row in texts()],
    )
    examples = [{"input_ids": each, "label": [i % 3]} for i, each in enumerate(ids)]
    collate = TextCollator(rows.padding, rows.padding)
    with torch.no_grad():
        together = rows(collate(examples)["batch"].student).logits(slice(None))
        alone = torch.cat([rows(collate([each])["batch"].student).logits(slice(None)) for each in examples])
        longer = [*examples, {"input_ids": (ids[0] * 20)[:60], "label": [0]}]
        padded = rows(collate(longer)["batch"].student).logits(slice(None))[:-1]
    assert together.std(0).max() > 1e-3  # the logits depend on the text
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_padding_side_of_the_tokenizer_changes_nothing(tmp_path, monkeypatch, family):
    """Not even rounding: texts are padded on the right."""
    found = []
    for side in ("right", "left"):
        monkeypatch.setattr(tokenizer(), "padding_side", side)
        run = text_trainer(tmp_path / side, classifier(0, family), max_steps=2)
        run.train()
        found.append(run)
    losses = [[event["loss"] for event in run.state.log_history if "loss" in event] for run in found]
    assert losses[0] == losses[1]
    assert gap(found[0].model, found[1].model) == 0.0


def test_padding_examples_are_no_rows(tmp_path):
    """They are added for a process that has run out of examples."""
    run = text_trainer(tmp_path)
    empty = run.train_dataset.padding_example()
    both = run.collator([run.train_dataset[0], empty])["batch"]
    assert both.weight.tolist() == [1.0]
    assert run.collator([empty, empty])["batch"].weight.tolist() == [0.0]


@pytest.mark.parametrize(("size", "accumulated"), [(4, 2), (1, 8)])
def test_splits_do_not_change_the_step(tmp_path, size, accumulated):
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    whole = text_trainer(tmp_path / "whole", classifier(0, **still), per_device_train_batch_size=8, **options)
    whole.train()
    options |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    parts = text_trainer(tmp_path / "parts", classifier(0, **still), **options)
    parts.train()
    assert gap(whole.model, parts.model) < 2e-6


def test_evaluation_is_that_of_transformers(tmp_path):
    """Pairs, with token types; logits and metrics as from the plain models."""
    held_out = texts(7, pairs=True)
    run = text_trainer(tmp_path, data=texts(pairs=True), eval_dataset=held_out, per_device_eval_batch_size=3)
    found = run.evaluate()
    inputs = [tokenizer()(row["text"], row["text_pair"], return_tensors="pt") for row in held_out]
    assert any(each["token_type_ids"].any() for each in inputs)
    labels = torch.tensor([row["label"] for row in held_out])
    with torch.no_grad():
        z, y = (torch.cat([model(**each).logits for each in inputs]) for model in (classifier(0), teacher()))
    log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
    expected = {
        "accuracy": (z.argmax(-1) == labels).float().mean(),
        "teacher_accuracy": (y.argmax(-1) == labels).float().mean(),
        "top1_agreement": (y.argmax(-1) == z.argmax(-1)).float().mean(),
        "cross_entropy": nn.functional.cross_entropy(z, labels),
        "teacher_cross_entropy": nn.functional.cross_entropy(y, labels),
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(-1).mean(),
    }
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_each_model_reads_its_own_tokens(tmp_path):
    """A teacher with another vocabulary."""
    own = tokenizer(270)
    classifier(3).save_pretrained(tmp_path / "teacher")
    own.save_pretrained(tmp_path / "teacher")
    run = text_trainer(tmp_path / "run", teach=str(tmp_path / "teacher"), max_length=7)
    texts_of_run = [row["text"] for row in texts()]
    batch = run.collator([run.train_dataset[i] for i in range(12)])["batch"]
    for view, mine, model in ((batch.student, tokenizer(), run.model), (batch.teacher, own, run.models.teacher.model)):
        expected = mine(texts_of_run, truncation=True, max_length=7, padding=True, return_tensors="pt")
        assert torch.equal(view.inputs["input_ids"], expected["input_ids"])
        assert model.config.num_labels == 3
    assert not torch.equal(batch.student.inputs["input_ids"], batch.teacher.inputs["input_ids"])
    assert run.train_dataset.truncated > 0
    run.train()


def test_texts_are_cut_to_the_positions_of_each_model(tmp_path, caplog):
    long = [{**row, "text": f"{row['text']} " + " ".join(WORDS * 9)} for row in texts()]
    run = text_trainer(tmp_path, data=long, max_length=512, max_steps=1)
    assert max(run.train_dataset.lengths) == 64
    with caplog.at_level(logging.WARNING, logger="abkd"):
        run.train()
    assert "truncate 12 of 12 examples" in caplog.text


def test_a_model_that_reads_padding_is_refused(tmp_path):
    class Unmasked(BertForSequenceClassification):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    model = Unmasked(classifier(0).config)
    model.load_state_dict(classifier(0).state_dict())
    with pytest.raises(ConfigError, match="Unmasked reads padding"):
        text_trainer(tmp_path, model)


# ---- labels


def test_labels_are_not_needed(tmp_path):
    bare, held_out = texts(labelled=False), texts(4, labelled=False)
    run = text_trainer(tmp_path, data=bare, ce_weight=0.0, eval_dataset=held_out, eval_strategy="epoch")
    run.train()
    found = run.evaluate()
    assert "eval_accuracy" not in found
    assert found["eval_forward_kl"] > 0
    with pytest.raises(ConfigError, match="no labels, which the cross-entropy needs"):
        text_trainer(tmp_path / "b", data=bare)
    with pytest.raises(ConfigError, match="use another divergence"):
        text_trainer(tmp_path / "c", data=bare, ce_weight=0.0, divergence="DKD()")
    with pytest.raises(DataError, match=r"3 of 6 examples have no label\. Label all or none"):
        text_trainer(tmp_path / "d", data=[*texts(3, labelled=False), *texts(3)])


def test_labels_alone_need_no_teacher(tmp_path):
    """A checkpoint without a head gets one for the classes of the data, by name."""
    classifier(0).bert.save_pretrained(tmp_path / "bare")
    tokenizer().save_pretrained(tmp_path / "bare")
    named = [{**row, "label": NAMES[row["label"]]} for row in texts()]
    options = {"ce_weight": 1.0, "kd_weight": 0.0, "max_steps": 2, "use_cpu": True}
    args = DistillConfig(output_dir=str(tmp_path / "run"), task="text-classification", **options)
    run = DistillTrainer(str(tmp_path / "bare"), None, args, train_dataset=named, eval_dataset=named[:5])
    run.train()
    assert 0.0 <= run.evaluate()["eval_accuracy"] <= 1.0
    assert run.model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("form", ["names", "csv", "ClassLabel"])
def test_classes_are_matched_by_name(tmp_path, form):
    """In the order of the teacher, whatever the order of the data; digits are numbers."""
    plain = texts()
    if form == "names":
        data: Any = [{**row, "label": NAMES[row["label"]].upper()} for row in plain]
    elif form == "csv":
        data = tmp_path / "data.csv"
        with data.open("w", newline="") as file:
            table = csv.DictWriter(file, ["text", "label"])
            table.writeheader()
            table.writerows(plain)
    else:
        turned = datasets.ClassLabel(names=list(NAMES[::-1]))
        rows = [{**row, "label": 2 - row["label"]} for row in plain]
        data = datasets.Dataset.from_list(rows).cast_column("label", turned)
    run = text_trainer(tmp_path / "run", data=data)
    assert [example["label"] for example in run.train_dataset] == [[row["label"]] for row in plain]


def test_a_student_without_a_head_gets_the_teachers_classes(tmp_path):
    names = save(tmp_path, teacher=teacher(), bare=classifier(0).bert)
    run = text_trainer(tmp_path / "run", names["bare"], teach=names["teacher"])
    run.train()
    run.save_model()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert saved.config.id2label == dict(enumerate(NAMES))
    assert saved.config.label2id == {name: number for number, name in enumerate(NAMES)}
    assert gap(saved, run.model) == 0.0
    assert AutoTokenizer.from_pretrained(tmp_path / "run")("a list")["input_ids"] == tokenizer()("a list")["input_ids"]
    again = text_trainer(tmp_path / "again", str(tmp_path / "run"), teach=names["teacher"], max_steps=1)
    again.train()


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(VocabularyError, match="the student has 4 classes and the teacher 3"):
        text_trainer(tmp_path, classifier(0, names=4))
    with pytest.raises(VocabularyError, match="class 0 is 'positive' for the student and 'negative' for the teacher"):
        text_trainer(tmp_path, classifier(0, names=NAMES[::-1]))
    with pytest.raises(VocabularyError, match="has a class 'angry' that the models do not have"):
        text_trainer(tmp_path, data=[{**row, "label": "angry"} for row in texts()])
    with pytest.raises(ConfigError, match="expected labels from 0 to 2, the 3 classes of the student, got 5"):
        text_trainer(tmp_path, data=[{**row, "label": 5} for row in texts()])
    with pytest.raises(ConfigError, match=r"classes that exclude each other, got Bert.*: multi_label_classification"):
        text_trainer(tmp_path, classifier(0, problem_type="multi_label_classification"))
    names = save(tmp_path / "models", teacher=teacher(), two=classifier(0, names=2))
    with pytest.raises(VocabularyError, match="the student has 2 classes and the teacher 3"):
        text_trainer(tmp_path, names["two"], teach=names["teacher"])


# ---- runs


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation, by length": {"gradient_accumulation_steps": 2, "group_by_length": True},
    "second epoch of pairs": {"data": texts(4, pairs=True)},
    "evaluated": {"eval_dataset": texts(3), "eval_strategy": "steps", "eval_steps": 1},
    "average of the student": {"teacher": "EMA(0.9)", "teach": [], "ce_weight": 0.9},
}


@pytest.mark.parametrize(("case", "family"), [*((case, "bert") for case in CASES), ("plain", "gpt2")])
def test_resume_is_exact(tmp_path, case, family):
    """With dropout, which reads the random numbers of the run."""
    options = {**EVERY_THIRD, **CASES[case]}
    whole = text_trainer(tmp_path / "whole", classifier(0, family), **options)
    whole.train()
    text_trainer(tmp_path / "parts", classifier(0, family), **options, callbacks=[StopAfter(3)]).train()
    torch.manual_seed(99)
    resumed = text_trainer(tmp_path / "parts", classifier(5, family), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0
    assert gap(whole.model, classifier(0, family)) > 0.0


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_adapters_leave_the_head_to_be_trained_and_are_merged_when_saved(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    run = text_trainer(tmp_path, peft_config=adapters, learning_rate=1e-2)
    before = weights(run.model)
    run.train()
    moved = {name for name, value in weights(run.model).items() if (value != before[name]).any()}
    assert all(any(part in name for name in moved) for part in ("lora_", "classifier", "pooler"))
    run.save_model()
    saved, inputs = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        tokenizer()("a list", return_tensors="pt"),
    )
    with torch.no_grad():
        torch.testing.assert_close(saved(**inputs).logits, run.model.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_ensembles_teach_texts(tmp_path):
    run = text_trainer(tmp_path, teach=[teacher(), classifier(8)], teacher="Ensemble()", max_steps=2)
    run.train()
    assert len(run.models.teacher.models) == 2


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str, fails: bool = False) -> str:
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        assert bool(ended.value.code) == fails, said.err
        return said.out + said.err

    return run


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    names = save(tmp_path, teacher=teacher(), student=classifier(0, "distilbert"))
    given = {
        "model_name_or_path": names["student"],
        "teacher_model_name_or_path": names["teacher"],
        "train_file": write_texts(tmp_path / "data.jsonl", texts(30)),
        "output_dir": tmp_path / "run",
        "max_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def test_the_shipped_recipe_runs_on_other_models_and_data(tmp_path, flags, command):
    others = ["--dataset_name", "", "--dataset_config", "", "--dataset_test_split", "", "--eval_fraction", "0.2"]
    name = "glue/distilbert_sst2"
    shown = command("show", name, *flags, *others, "--sample")
    assert shown.startswith("# L = mean over examples of (0.5·CE + 0.5·T²·KL(p‖q)),  T = 2")
    assert "tokens of text, label 0" in shown
    command("distill", name, *flags, *others)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3]
    assert [event["step"] for event in events if "eval_accuracy" in event] == [0, 3]
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (result["class_names"], result["labelled"]) == (list(NAMES), True)
    assert "accuracy" in (tmp_path / "run" / "report.html").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.model_type == "distilbert"


def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, flags, command):
    data = flags.index("--train_file")
    flags, file = [*flags[:data], *flags[data + 2 :]], flags[data + 1]

    def said(*words: str, train_file: Any = file, verb: str = "distill") -> str:
        given = ["--task", "text-classification", *flags, "--train_file", str(train_file), *words]
        return " ".join(command(verb, *given, fails=True).split())

    assert "did you mean --text_column_names?" in said("--text_column_nmes", "text")
    assert "packing does not apply to the task text-classification" in said("--packing", "true")
    unknown = said("--text_column_names", "review")
    assert "data.jsonl has no column 'review' (text_column_names), only label, text" in unknown
    assert "has no column 'stars' (label_column_name)" in said("--label_column_name", "stars")
    bad = write_texts(tmp_path / "bad.jsonl", [{"review": "good", "label": 1}] * 3)
    assert "bad.jsonl has no text column: expected one of" in said(train_file=bad)
    assert "empty.jsonl has no rows" in said(train_file=write_texts(tmp_path / "empty.jsonl", []))
    blank = write_texts(tmp_path / "blank.jsonl", [{"text": " ", "label": 1}, *texts(9)])
    assert "1 of 10 rows cannot be used: line 1: the text is empty" in said("--eval_fraction", "0", train_file=blank)
    uncached = "teachers of the task text-classification cannot be cached"
    assert uncached in said("--teacher", "HiddenCache()")
    assert uncached in said("--teacher", "TopKCache(k=2)", verb="cache")
    assert not (tmp_path / "run").exists()


def test_the_columns_of_other_data_can_be_named(tmp_path):
    data = [{"q": row["text"], "a": row["text_pair"], "stars": row["label"]} for row in texts(pairs=True)]
    run = text_trainer(tmp_path / "a", data=data, text_column_names=["q", "a"], label_column_name="stars")
    other = text_trainer(tmp_path / "b", data=texts(pairs=True))
    assert run.train_dataset.fingerprint == other.train_dataset.fingerprint
    with pytest.raises(DataError, match="must be one column, or two of a pair"):
        text_trainer(tmp_path / "c", data=data, text_column_names=["q", "a", "q"], label_column_name="stars")


def test_features_are_one_for_each_text():
    rows = SequenceRows(classifier(0), tokenizer())
    assert rows.feature_shapes(["bert.pooler"]) == {"bert.pooler": (16,)}
    with pytest.raises(ConfigError, match=r"bert\.embeddings is one per token, and a row is a text"):
        rows.feature_shapes(["bert.embeddings"])
