"""report.html for complete, partial and broken run directories; it is self-contained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from abkd.errors import DataError, StorageError
from abkd.report import render_report, write_report
from abkd.report.content import trade_of
from abkd.report.files import RunFiles
from abkd.report.table import cards_of, table_of

RECIPE = """model_name_or_path: out/small
teacher_model_name_or_path: org/Big-Model
divergence: stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))
"""
RUN = {
    "versions": {"abkd": "0.1.0", "torch": "2.13.0"},
    "seed": 7,
    "objective": "L = D(p‖q), forward KL, then α-β",
    "data_fingerprint": "sha256:9f2c",
    "chunk_rows": 512,
    "student_parameters": 60_234_432,
}
METRICS = [
    {"step": k, "loss": 5 - k / 40, "student_entropy": 2.0, "teacher_entropy": 1.2} for k in range(10, 101, 10)
] + [{"step": 100, "train_runtime": 211.3, "epoch": 2.0}]
EVALUATIONS = [
    {"step": k, "eval_perplexity": 132 - k, "eval_teacher_perplexity": 5.03, "eval_forward_kl": 3.7 - k / 50,
     "eval_reverse_kl": 3.6 - k / 50, "eval_top1_agreement": 0.3 + k / 400}
    for k in (0, 50, 100)
]  # fmt: skip
NASTY = "</td><script>alert('x')</script><img src=http://evil.example/x.png>"


def row(name, **numbers):
    keys = ("perplexity", "forward_kl", "reverse_kl", "top1_agreement", "rouge_l_greedy", "rouge_l_sampled",
            "rouge_l_sampled_std", "parameters", "tokens_per_second", "train_seconds")  # fmt: skip
    return {"name": name, **dict.fromkeys(keys), **numbers}


BEFORE = row("student before", perplexity=132.4, forward_kl=3.71, top1_agreement=0.312, rouge_l_sampled=6.2)
AFTER = row(
    "student after", perplexity=24.8, forward_kl=1.64, top1_agreement=0.566, rouge_l_sampled=15.5, parameters=6.02e7
)
TEACHER = row("teacher", perplexity=5.03, forward_kl=0.0, top1_agreement=1.0, rouge_l_sampled=16.9, parameters=1.345e8)
FORWARD = row("forward KL", perplexity=18.1, forward_kl=1.34, rouge_l_sampled=12.5, rouge_l_sampled_std=0.3)
ALPHA_BETA = row("α-β (0.2, 0.7)", perplexity=32.2, forward_kl=1.88, rouge_l_sampled=15.1, rouge_l_sampled_std=0.8)
DEMO = {
    "title": "A small model learns",
    "teacher": {"name": "Big", "parameters": 134_515_008},
    "rows": [BEFORE, AFTER, TEACHER],
    "highlight": "student after",
    "answers": [
        {
            "prompt": "What is <dir>?",
            "reference": "A list & more",
            "answers": {"teacher": "t", "student before": NASTY, "student after": ""},
        }
    ],
    "notes": ["Text: docstrings."],
    "compare": False,
}
COMPARE = {**DEMO, "rows": [BEFORE, FORWARD, ALPHA_BETA, TEACHER], "highlight": ALPHA_BETA["name"], "compare": True}


@pytest.fixture
def make_run(tmp_path):
    def make(*, recipe=RECIPE, run=RUN, metrics=METRICS + EVALUATIONS, demo=None):
        if recipe is not None:
            (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if run is not None:
            (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
        if metrics is not None:
            events = sorted(metrics, key=lambda event: event["step"])
            (tmp_path / "metrics.jsonl").write_text(
                "".join(json.dumps(event) + "\n" for event in events), encoding="utf-8"
            )
        if demo is not None:
            (tmp_path / "demo.json").write_text(json.dumps(demo), encoding="utf-8")
        return tmp_path

    return make


class Tags(HTMLParser):
    """Collects every tag, its attributes and the text, and checks that all tags are closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, page):
        super().__init__()
        self.seen, self.open, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_full_demo_run_has_every_section(make_run):
    path = write_report(make_run(demo=DEMO))
    page = path.read_text(encoding="utf-8")
    text = Tags(page).text()
    assert path.name == "report.html"
    assert path.stat().st_size < 1_500_000
    assert headings(page) == ["Results", "Training curves", "Answers side by side", "Reproduce this run"]
    said = [
        "A small model learns",
        RUN["objective"],
        "Forward KL is mode-covering",
        "α-β is mode-seeking",
        "no answer",
        "3 min 31 s",
    ]
    for words in [*said, "sha256:9f2c", "torch 2.13.0", "Text: docstrings.", "134.5", "56.6"]:
        assert words in text
    assert page.count("<figure>") == 5


def test_the_page_loads_nothing_and_runs_nothing(make_run):
    page = render_report(make_run(demo=COMPARE))
    tags = Tags(page).seen
    assert not [tag for tag, _ in tags if tag in {"script", "link", "img", "iframe", "object", "base", "form"}]
    for _, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "data"}:
                assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", page)


def test_text_from_the_run_is_escaped(make_run):
    recipe = RECIPE + f"# {NASTY}\n"
    page = render_report(make_run(recipe=recipe, run={**RUN, "note": NASTY, "objective": NASTY},
                                  demo={**DEMO, "title": NASTY, "notes": [NASTY]}))  # fmt: skip
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 7  # title twice, objective, note, answer, fact, recipe
    assert "What is &lt;dir&gt;?" in page


def test_a_plain_run_compares_its_first_and_last_evaluation(make_run):
    page = render_report(make_run())
    text = Tags(page).text()
    assert headings(page) == ["Results", "Training curves", "Reproduce this run"]
    assert "Big-Model distilled into small" in text
    assert "student before 132 3.70 3.60 30.0" in text
    assert "student after 32.0 1.70 1.60 55.0 60.2" in text
    assert "teacher 5.03" in text
    assert "Forward KL is mode-covering" not in text


def test_one_evaluation_is_only_an_after(make_run):
    page = render_report(make_run(metrics=METRICS + EVALUATIONS[-1:]))
    assert "student after" in page
    assert "student before" not in page


def test_a_first_evaluation_in_mid_run_is_named_by_its_step(make_run):
    assert "student at step 50" in render_report(make_run(metrics=METRICS + EVALUATIONS[1:]))


@pytest.mark.parametrize(
    ("missing", "sections"),
    [
        ("metrics", ["Reproduce this run"]),
        ("recipe", ["Results", "Training curves", "Reproduce this run"]),
        ("run", ["Results", "Training curves", "Reproduce this run"]),
    ],
)
def test_what_is_missing_is_left_out(make_run, missing, sections):
    page = render_report(make_run(**{missing: None}))
    Tags(page)
    assert headings(page) == sections


def test_metrics_alone_make_a_page(make_run):
    page = render_report(make_run(recipe=None, run=None, metrics=METRICS))
    assert headings(page) == ["Training curves"]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a run directory"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="not a run directory"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("demo.json", "[1]"), ("recipe.yaml", "a: [")])
def test_a_broken_file_is_named(make_run, name, text):
    directory = make_run()
    (directory / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(directory)
    assert not (directory / "report.html").exists()


def test_lines_that_are_no_records_are_left_out_and_an_unfinished_last_one_is_not_even_said(make_run, caplog):
    directory = make_run()
    path = directory / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 101, "lo')
    assert len(RunFiles.read(directory).metrics) == len(whole.splitlines())
    assert not caplog.messages
    path.write_bytes(b'{"step": 101, "lo\n[1]\n\xff\xfe\n{"step": 102, "loss": NaN}\n' + whole)
    assert len(RunFiles.read(directory).metrics) == 1 + len(whole.splitlines())
    assert "3 of" in caplog.text
    assert "are skipped (1, 2, 3)" in caplog.text
    assert "nan" not in render_report(directory).lower()


def test_a_page_is_replaced_whole(make_run):
    directory = make_run()
    write_report(directory)
    assert write_report(directory).read_text(encoding="utf-8") == render_report(directory)
    assert not list(directory.glob(".*"))


def test_a_page_that_cannot_be_written_is_a_storage_error(make_run):
    directory = make_run()
    (directory / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        write_report(directory)


def test_the_comparison_draws_and_tells_both_sides(make_run):
    page = render_report(make_run(demo=COMPARE))
    text = Tags(page).text()
    assert "Objectives side by side" in headings(page)
    assert "ROUGE-L of sampled answers 15.1 against 12.5" in text
    assert "perplexity 32.2 against 18.1" in text


def test_a_difference_within_the_spread_is_called_so():
    close = {**ALPHA_BETA, "rouge_l_sampled": 12.9}
    assert "within the spread" in trade_of([FORWARD, close], close["name"])[1]
    assert "within the spread" not in trade_of([FORWARD, ALPHA_BETA], ALPHA_BETA["name"])[1]


def test_the_best_student_of_a_column_is_marked_never_the_teacher():
    table = table_of(COMPARE["rows"], ALPHA_BETA["name"])
    best = {
        column.name: [line.name for line in table.rows if line.cells[place].best]
        for place, column in enumerate(table.columns)
    }
    assert best["perplexity"] == ["forward KL"]
    assert best["rouge_l_sampled"] == [ALPHA_BETA["name"]]
    assert best["parameters"] == []


def test_columns_that_nobody_fills_are_left_out():
    table = table_of(DEMO["rows"], "student after")
    assert "rouge_l_greedy" not in [column.name for column in table.columns]
    assert table_of([], "student after") is None


def test_cards_say_how_much_of_the_way_is_done():
    cards = {card.label: card for card in cards_of(DEMO["rows"], "student after")}
    assert cards["Forward KL"].closed == pytest.approx(1 - 1.64 / 3.71)
    assert cards["Perplexity"].closed == pytest.approx(0.512, abs=1e-3)
    assert cards["Top-1 agreement"].closed == pytest.approx((0.566 - 0.312) / (1 - 0.312))
    assert cards["ROUGE-L"].teacher == "16.9"


def test_a_student_that_was_ahead_of_its_teacher_has_no_way_to_go():
    rows = [{**BEFORE, "perplexity": 4.0}, AFTER, TEACHER]
    assert next(card for card in cards_of(rows, "student after") if card.label == "Perplexity").closed is None
