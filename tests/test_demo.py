"""The demo: stages really differ, hostile input stays text, a browser asks and reads three answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import torch
from PIL import Image

from lite_medrl.cli import main
from lite_medrl.data.answers import FAILURES, parse
from lite_medrl.recipe import load_recipe
from lite_medrl.sections import Rollout
from lite_medrl.tools import cards, demo
from lite_medrl.tools.compare import Comparison, Reply, in_turn, spread
from lite_medrl.tools.invocation import command
from lite_medrl.tools.report.words import FAILURES as NAMED
from lite_medrl.tools.report.words import failure
from lite_medrl.types import DataError, ImageRef, ModelError, RecipeError, Sample

REPO = Path(__file__).parents[1]
EMBEDDED = REPO / "lite_medrl" / "model" / "embedded"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
RECIPE = """
model: {model_name_or_path: MODEL}
prompt: {instruction: "think , then answer ."}
diagnose: {num_samples: 1, k: [1], max_completion_length: 24}
"""
STAGES = ("base", "sft", "grpo")
RESULTS = {
    "stages": [
        {"stage": name, "name": name, "split": split, "n": 480, "acc_at_1": accuracy,
         "acc_at_1_ci95": [accuracy - 0.04, accuracy + 0.04]}
        for name, accuracy in zip(STAGES, (0.41, 0.72, 0.766), strict=True)
        for split in ("validation", "test")
    ]
}  # fmt: skip
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=2</script> & </div>'


def tiny_model(folder: Path) -> str:
    """The embedded model; before it is made, an untrained one of the same kind."""
    if (EMBEDDED / "config.json").is_file():
        return "embedded"
    spec = importlib.util.spec_from_file_location("maker", REPO / "examples" / "make_embedded_model.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    sys.modules["maker"] = maker
    spec.loader.exec_module(maker)
    processor = maker.make_processor(maker.training_images()[:40])
    maker.export(folder / "model", maker.make_model(processor), processor)
    return str(folder / "model")


def save_adapter(model: str, folder: Path, seed: int, r: int = 4) -> None:
    """A LoRA whose B is not zero, so that it changes what the model says."""
    import torch

    from lite_medrl.model.load import add_lora, load

    loaded = load(model)
    tuned = add_lora(
        loaded.model, r=r, lora_alpha=8, lora_dropout=0.0, target_modules="language-linear", seed=seed
    )
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=noise)
    tuned.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"])
    loaded.processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    model, run = tiny_model(folder), folder / "my <b>run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE.replace("MODEL", model))
    (run / "results.json").write_text(json.dumps(RESULTS))
    save_adapter(model, run / "adapters" / "sft", seed=1)
    save_adapter(model, run / "adapters" / "grpo", seed=2)
    return run


@pytest.fixture(scope="module")
def comparison(run_dir: Path) -> Comparison:
    return Comparison.open(run_dir)


def copy_of(run: Path, folder: Path, *stages: str, recipe: str = "") -> Path:
    """The folder of a run that was stopped once these stages were measured."""
    (folder / "adapters").mkdir(parents=True)
    (folder / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + recipe)
    done = ["measure base", *(f"{what} {stage}" for stage in stages for what in ("train", "measure"))]
    decisions = [{"after": "base", "action": "sft"}] if "sft" in stages else []
    measured = [row for row in RESULTS["stages"] if row["name"] in ("base", *stages)]
    write_progress(folder, done=done, decisions=decisions, stages=measured)
    for stage in stages:
        (folder / "adapters" / stage).symlink_to(run / "adapters" / stage, target_is_directory=True)
    return folder


def write_progress(folder: Path, **state: Any) -> None:
    (folder / "progress.json").write_text(json.dumps(state))


def sample(**changes: Any) -> Sample:
    values: dict[str, Any] = {
        "id": "q1", "images": (ImageRef("a.png"),), "question": "what ?", "options": ("lung", "liver"),
        "answer": "liver", "kind": "organ", "modality": "ct", "source": "s", "licence": "CC0-1.0",
        "split": "test",
    }  # fmt: skip
    return Sample(**(values | changes))


def reply(text: str, stage: str = "sft", correct: bool | None = None, **parse_options: Any) -> Reply:
    return Reply(stage, text, parse(text, **parse_options), correct, 0.25)


# --- the stages -----------------------------------------------------------------------------------
def test_adapters_of_another_base_are_refused(run_dir: Path, tmp_path: Path) -> None:
    from lite_medrl.model.load import fingerprint, load

    run = copy_of(run_dir, tmp_path / "run", "sft")
    model = load(load_recipe(run / "recipe.yaml").recipe.model.model_name_or_path).model
    write_progress(run, base=fingerprint(model))
    assert Comparison.open(run).stages == ("base", "sft")
    with torch.no_grad():
        next(p for p in model.parameters() if p.is_floating_point()).view(-1)[0] += 1
    write_progress(run, base=fingerprint(model))
    with pytest.raises(ModelError, match=r"belong to another version of .*run it again"):
        Comparison.open(run)


def test_each_stage_answers_as_its_own_adapter_does(
    run_dir: Path, comparison: Comparison, tmp_path: Path
) -> None:
    question = comparison.examples(1)[0]
    together = {reply.stage: reply.text for reply in comparison.answers(question)}
    assert tuple(together) == comparison.stages == STAGES
    assert len(set(together.values())) == 3
    for stage in STAGES:
        alone = Comparison.open(copy_of(run_dir, tmp_path / stage, *{stage} - {"base"}))
        assert alone.answer(stage, question).text == together[stage]


def test_threads_do_not_mix_the_stages_up(comparison: Comparison) -> None:
    question = comparison.examples(2)[1]
    serial = {stage: comparison.answer(stage, question).text for stage in STAGES}
    with ThreadPoolExecutor(4) as pool:
        jobs = [(stage, pool.submit(comparison.answer, stage, question)) for stage in STAGES * 3]
    assert [(stage, job.result().text) for stage, job in jobs] == [
        (stage, serial[stage]) for stage in STAGES * 3
    ]


def test_an_answer_is_the_one_of_the_evaluation(comparison: Comparison) -> None:
    from lite_medrl.measure.ask import ask
    from lite_medrl.model.generate import Sampling

    questions = comparison.examples(3)
    comparison.model.set_adapter("sft")
    asked = ask(
        comparison.model, comparison.processor, questions, num_samples=0,
        sampling=Sampling(24, temperature=0.0), instruction="think , then answer .",
    )  # fmt: skip
    replies = [comparison.answer("sft", question) for question in questions]
    assert [(r.text, r.correct) for r in replies] == [(a.greedy, a.correct) for a in asked]


def test_watching_shows_every_stage_write_what_it_then_answers(comparison: Comparison) -> None:
    (question,) = comparison.examples(1)
    seen = list(comparison.watch(question))
    assert [stage for stage, _ in seen] == sorted((s for s, _ in seen), key=STAGES.index)
    replies = {stage: said for stage, said in seen if isinstance(said, Reply)}
    for stage in STAGES:
        texts = [said for s, said in seen if s == stage and isinstance(said, str)]
        assert len(texts) > 3
        assert all(later.startswith(sooner) for sooner, later in pairwise(texts))
        whole = comparison.answer(stage, question)
        assert texts[-1] == replies[stage].text == whole.text
        assert (replies[stage].answer, replies[stage].correct) == (whole.answer, whole.correct)


def test_what_is_watched_is_drawn_and_stopped_as_the_recipe_says(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    (question,) = comparison.examples(1)
    told = {"generator": "hf", "stop": ["</think>"], "max_cache_gib": 1.5}
    recipe = comparison.recipe.model_copy(update={"rollout": Rollout.model_validate(told)})
    monkeypatch.setattr(comparison, "recipe", recipe)
    seen = [said for stage, said in comparison.watch(question) if stage == "sft"]
    texts, (reply,) = seen[:-1], [said for said in seen if isinstance(said, Reply)]
    assert texts == [reply.text]  # transformers' generate, so in one piece
    assert reply.text == comparison.answer("sft", question).text
    assert reply.text.endswith("</think>")
    tight = Rollout.model_validate(told | {"max_cache_gib": 1e-9})
    monkeypatch.setattr(comparison, "recipe", comparison.recipe.model_copy(update={"rollout": tight}))
    with pytest.raises(ModelError, match="no room for answers"):
        list(comparison.watch(question))


def test_without_a_gold_answer_nothing_is_right_or_wrong(comparison: Comparison) -> None:
    from dataclasses import replace

    free = replace(comparison.examples(1)[0], answer="", options=())
    assert comparison.answer("base", free).correct is None


def test_a_run_without_grpo_has_two_stages_and_says_so(run_dir: Path, tmp_path: Path) -> None:
    from lite_medrl.tools import demo_page as page

    run = copy_of(run_dir, tmp_path / "run", "sft", recipe="grpo: {enabled: false}\n")
    (run / "results.json").write_text(json.dumps({"stages": RESULTS["stages"][:4]}))
    comparison = Comparison.open(run)
    assert comparison.stages == ("base", "sft")
    assert comparison.notice == ""
    assert "This run has no GRPO stage." in page.header(comparison)
    assert "not finished" not in page.header(comparison)
    assert page.scores(tmp_path) is None
    assert "too few" not in str(page.scores(run))
    row = {"name": "base", "split": "test", "n": 5, "acc_at_1": 1.0, "acc_at_1_ci95": [0.57, 1.0]}
    (tmp_path / "results.json").write_text(json.dumps({"stages": [row]}))
    assert "n = 5: too few questions to compare" in str(page.scores(tmp_path))


def test_a_run_that_was_stopped_shows_what_is_there_and_says_what_is_missing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lite_medrl.tools import demo_page as page

    run = copy_of(run_dir, tmp_path / "run", "sft")
    monkeypatch.setattr(sys, "argv", ["/opt/venv/bin/python", "demo"])
    again = command("run", run / "recipe.yaml", "--output_dir", run, "--resume")
    told = f"{run} is not finished. Missing: GRPO, the report (results.json). "
    told += f"Unless it is still running, go on with: {again}"
    comparison = Comparison.open(run)
    assert (comparison.stages, comparison.notice) == (("base", "sft"), told)
    html = page.header(comparison)
    assert f'<div class="lm-banner" role="note">{told}</div>' in html
    assert "This run so far has no GRPO stage." in html
    assert "SFT <b>72.0\u202f%</b>" in html  # measured before it was stopped
    with demo.serve(comparison):
        assert told in capsys.readouterr().err


def test_what_is_missing_of_a_run(run_dir: Path, tmp_path: Path) -> None:
    from lite_medrl.tools.unfinished import notice

    recipe = load_recipe(run_dir / "recipe.yaml").recipe
    sft = {"after": "base", "action": "sft"}
    report = "the report (results.json)"
    cases: list[tuple[list[str], list[Any], str]] = [
        ([], [], f"the measurement of Base, GRPO, {report}"),
        (["measure base"], [sft], f"SFT, GRPO, {report}"),
        (["measure base", "train sft"], [sft], f"the measurement of SFT, GRPO, {report}"),
        (
            ["measure base", "train sft", "measure sft"],
            [sft, sft | {"after": "sft"}],
            f"SFT 2, GRPO, {report}",
        ),
        (["measure base", "train grpo", "measure grpo"], [sft | {"action": "grpo"}], report),
    ]
    for i, (done, decisions, missing) in enumerate(cases):
        run = tmp_path / str(i)
        for stage in ("sft", "grpo"):
            (run / "adapters" / stage).mkdir(parents=True)
        write_progress(run, done=done, decisions=decisions)
        assert f"Missing: {missing}. Unless" in notice(run, recipe)
    (run / "results.json").write_text("{}")
    assert notice(run, recipe) == ""
    (run / "adapters" / "grpo").rmdir()
    again = command("run", run / "recipe.yaml", "--output_dir", run, "--overwrite")
    assert notice(run, recipe) == f"{run} has lost its adapter of GRPO. Make the run again with: {again}"


def test_a_run_without_a_finished_stage_is_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(run_dir, tmp_path / "run")
    assert Comparison.open(run).stages == ("base",)
    write_progress(run, done=[])
    capsys.readouterr()
    for words in ([], ["--json"]):
        assert main(["demo", str(run), *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(
            f"lite-medrl: RUN: no stage of it can be shown yet: {run} is not finished. Missing: "
        )
        assert err.endswith(f"run {run}/recipe.yaml --output_dir {run} --resume\n")
    (run / "progress.json").unlink()
    assert main(["demo", str(run)]) == 2
    assert (
        "has no results.json and no progress.json: it cannot go on, run it again." in capsys.readouterr().err
    )


def test_no_run_no_demo(tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="there is no folder"):
        Comparison.open(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match=r"no recipe\.yaml"):
        Comparison.open(tmp_path)
    assert main(["demo", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    broken = copy_of(run_dir, tmp_path / "broken", "sft")
    (broken / "adapters" / "grpo").mkdir()
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        Comparison.open(broken)


def test_an_adapter_of_another_model_is_refused(run_dir: Path, tmp_path: Path) -> None:
    run = copy_of(run_dir, tmp_path / "run", "sft")
    stage = run / "adapters" / "grpo"
    stage.mkdir()
    for file in (run_dir / "adapters" / "grpo").iterdir():
        (stage / file.name).write_bytes(file.read_bytes())
    config = json.loads((stage / "adapter_config.json").read_text())
    (stage / "adapter_config.json").write_text(json.dumps(config | {"r": 7}))
    with pytest.raises(ModelError, match="size mismatch"):
        Comparison.open(run)
    (stage / "adapter_config.json").write_text(json.dumps(config))
    (stage / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match="does not load"):
        Comparison.open(run)


def test_examples_are_spread_over_modalities_and_kinds() -> None:
    rows = [("ct", "organ", 6), ("ct", "plane", 3), ("mr", "plane", 2), ("fundus", "disc", 1)]
    samples = [
        sample(
            id=f"{modality}-{kind}-{i}",
            modality=modality,
            kind=kind,
            images=(ImageRef(f"{modality}{kind}{i}"),),
        )
        for modality, kind, count in rows
        for i in range(count)
    ]
    found = spread(samples, 5, seed=0)
    assert [s.modality for s in found] == ["ct", "fundus", "mr", "ct", "mr"]
    assert {s.kind for s in found if s.modality == "ct"} == {"organ", "plane"}
    assert spread(samples, 5, seed=0) == found
    assert len(spread(samples * 2, 99, seed=0)) == 12  # an image is shown once
    assert spread([], 5, seed=0) == []
    assert in_turn([]) == []


# --- the cards ------------------------------------------------------------------------------------
def test_a_card_shows_answer_verdict_and_folded_reasoning() -> None:
    said = "<think> a brown organ . </think><answer> liver </answer>"
    html = cards.answered(["sft"], [reply(said, correct=True, options=("lung", "liver"))], sample())
    assert "Gold answer: <b>B. liver</b>" in html
    assert '<div class="lm-answer"><small>B</small>liver</div>' in html
    assert (
        '<details><summary>Reasoning</summary><div class="lm-thought">a brown organ .</div></details>' in html
    )
    assert "\u2713 right" in html
    assert "0.25 s" in html
    assert "format" not in html.replace("lm-format", "")


def test_a_card_names_what_went_wrong() -> None:
    html = cards.answered(
        ["base"], [reply("it is an axial", "base", False, options=("lung", "liver"))], sample()
    )
    told = ("no answer found", "\u2717 wrong", "format not kept", "All it wrote", "it is an axial")
    assert [html.count(text) for text in told] == [1] * 5


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("spleen", "outside the options"),
        ("", "empty answer"),
        ("lung or liver", "two answers that differ"),
        ("A. liver", "letter and text disagree"),
    ],
)
def test_an_answer_that_is_no_option_is_called_what_it_is(said: str, told: str) -> None:
    """The format is kept: what stood in <answer> is shown with the reasoning, as no option stands for it."""
    text = f"<think> a brown organ . </think><answer> {said} </answer>"
    html = cards.answered(["sft"], [reply(text, correct=False, options=("lung", "liver"))], sample())
    assert f'<div class="lm-answer"><span class="lm-none">{told}</span></div>' in html
    assert "no answer" not in html
    assert "All it wrote" in html
    assert f"&lt;answer&gt; {said} &lt;/answer&gt;" in html


def test_every_failure_of_the_parser_has_words() -> None:
    assert set(FAILURES) == set(NAMED)


def test_a_stage_that_has_not_answered_is_waited_for() -> None:
    html = cards.answered(STAGES, [reply("x", "base")], sample(answer=""))
    assert html.count("thinking") == 2
    assert "Gold" not in html
    assert cards.idle(STAGES).count("not asked yet") == 3


def test_what_a_model_writes_stays_text() -> None:
    for said in (HOSTILE, f"<think> {HOSTILE} </think><answer> {HOSTILE} </answer>"):
        html = cards.answered(["sft"], [reply(said)], sample(options=(HOSTILE, "b"), answer=HOSTILE))
        assert "<img" not in html
        assert "<script" not in html
        assert html.count("&lt;img src=x onerror=&quot;window.pwned=1&quot;&gt;") >= 2


def test_a_sheet_shows_images_and_ticks_the_gold_option(comparison: Comparison) -> None:
    questions = comparison.examples(3)
    html = cards.sheet(questions)
    assert html.count("data:image/png;base64,") == 3
    assert html.count('class="lm-is-gold"') == 3
    assert all(question.licence in html for question in questions)
    assert f'<li class="lm-is-gold">{questions[0].answer}</li>' in html


def test_a_framed_page_has_no_rights(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text('<p title="a">&amp; </iframe></p>')
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;&amp;amp; &lt;/iframe&gt;&lt;/p&gt;"' in cards.framed(
        tmp_path / "report.html"
    )
    assert 'sandbox=""' in cards.framed(tmp_path / "report.html")


# --- the page's events ----------------------------------------------------------------------------
@pytest.fixture
def desk(tmp_path: Path) -> Any:
    """A desk over a stand-in that answers with the first option at once."""
    from lite_medrl.tools.demo_page import Desk

    def watch(asked: Sample) -> Iterator[tuple[str, str | Reply]]:
        for ref in asked.images:
            from lite_medrl.data.images import load_image

            load_image(ref)
        for stage in STAGES:
            yield stage, "<think> y"
            yield stage, reply(f"<think> x </think><answer> {asked.options[0]} </answer>", stage)

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    known = sample(images=(ImageRef(str(tmp_path / "a.png")),))
    return Desk(SimpleNamespace(stages=STAGES, watch=watch), [known])  # pyright: ignore[reportArgumentType]


def test_an_untouched_example_is_asked_with_its_gold_answer(desk: Any, tmp_path: Path) -> None:
    image, question, options, place, empty = desk.pick(SimpleNamespace(index=0))
    assert (image.size, question, options, place) == ((8, 8), "what ?", "lung\nliver", 0)
    assert "not asked yet" in empty
    steps = list(desk.ask(str(tmp_path / "a.png"), question, options, place))
    assert [step.count("lm-foot") for step in steps] == [0, 0, 1, 1, 2, 2, 3]
    assert ["&lt;think&gt; y \u2026" in step for step in steps] == [False, True, False] + [True, False] * 2
    assert all("Gold answer" in step for step in steps)


def test_a_changed_example_has_no_gold_answer(desk: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    for question, options, place in (
        ("what else ?", "lung\nliver", 0),
        ("what ?", "lung\nbone", 0),
        ("what ?", "a\nb", None),
    ):
        asked = desk.sample(path, question, options, place)
        assert (asked.answer, asked.images) == ("", (ImageRef(path),))
    assert desk.sample(path, " what ? ", " lung \n\nliver\n", 0) is desk.samples[0]


@pytest.mark.parametrize(
    ("path", "question", "options", "words"),
    [
        (None, "q", "", "upload an image first"),
        ("p", " ", "", "Type a question"),
        ("p", "q", "one", "there are 1"),
        ("p", "q", "\n".join("abcdefghijk"), "there are 11"),
        ("p", "q", "a\na", "stands twice"),
        ("p", "q" * 601, "", "600 characters"),
        ("p", "q", "a\n" + "b" * 121, "an option 120"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(
    desk: Any, path: str | None, question: str, options: str, words: str
) -> None:
    (html,) = desk.ask(path, question, options, None)
    assert 'role="alert"' in html
    assert words in html


def test_hostile_uploads_are_refused_by_name_only(desk: Any, tmp_path: Path) -> None:
    Image.new("1", (8000, 5001)).save(tmp_path / "huge.png")
    (tmp_path / "fake.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "empty.png").touch()
    for name, words in (("huge", "over 40 megapixels"), ("fake", "cannot be read as"), ("empty", "0 bytes")):
        *_, html = desk.ask(str(tmp_path / f"{name}.png"), "q", "a\nb", None)
        assert words in html
        assert f"{name}.png" in html
        assert str(tmp_path) not in html


def test_a_bad_upload_is_named_without_our_own_words(comparison: Comparison, tmp_path: Path) -> None:
    from lite_medrl.tools.demo_page import Desk

    (tmp_path / "fake.png").write_text("no image")
    *_, html = Desk(comparison, []).ask(str(tmp_path / "fake.png"), "q", "a\nb", None)
    assert (
        ">image fake.png: cannot be read as PNG, JPEG, WEBP, BMP, TIFF: cannot identify image file;" in html
    )


def test_the_image_box_fetches_no_address_and_opens_no_file(tmp_path: Path) -> None:
    import gradio as gr

    from lite_medrl.tools.demo_page import files_only

    box = files_only(gr.Image())
    for address in ("http://192.0.2.1/a.png", "https://example.org/a.png", "ftp://192.0.2.1/a"):
        with pytest.raises(gr.Error, match="not fetched"):
            asyncio.run(box.async_move_resource_to_block_cache(address))
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert box.preprocess(SimpleNamespace(path=str(tmp_path / "broken.png"))) == str(tmp_path / "broken.png")
    assert box.preprocess(None) is None
    assert list((REPO / "lite_medrl").rglob("*.pyi")) == []


def test_lost_data_leaves_the_page_without_examples(run_dir: Path, comparison: Comparison) -> None:
    from lite_medrl.tools.demo_page import examples

    def lost(count: int) -> list[Sample]:
        raise DataError("mine.jsonl: no such file")

    assert examples(SimpleNamespace(examples=lost)) == ([], "No examples: mine.jsonl: no such file")  # pyright: ignore[reportArgumentType]


# --- the server and the browser -------------------------------------------------------------------
def test_the_server_is_closed_to_all_but_the_page(comparison: Comparison) -> None:
    with demo.serve(comparison) as url:
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert url.startswith("http://127.0.0.1:")
        port = urlsplit(url).port
        config = json.loads(urlopen(f"{url}config").read())
        info = json.loads(urlopen(f"{url}gradio_api/info").read())
        with pytest.raises(RecipeError, match=f"--port {port} cannot be used"), demo.serve(comparison, port):
            pass
        assert uploads.is_dir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])
    assert config["analytics_enabled"] is False
    assert not uploads.exists()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=2):
        pass


@pytest.fixture
def browser(browser_path: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=browser_path, args=FLAGS.split())
        yield opened
        opened.close()


@pytest.mark.slow
def test_a_browser_asks_and_reads_three_answers(
    browser: Any, comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lite_medrl.tools.demo_page import EXAMPLES

    samples = comparison.examples(EXAMPLES)
    with demo.serve(comparison) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests, faults = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#examples button.thumbnail-item")
        assert "not a medical device" in page.inner_text(".lm-banner")
        assert page.inner_text(".lm-title b") == "my <b>run"
        assert "GRPO 76.6" in page.inner_text(".lm-scores")
        assert page.locator("#examples button.thumbnail-item").count() == EXAMPLES

        page.locator("#examples button.thumbnail-item").nth(4).click()
        page.wait_for_selector("#image img")
        page.wait_for_function("document.querySelector('#question textarea').value != ''")
        assert page.input_value("#question textarea") == samples[4].question
        assert page.input_value("#options textarea") == "\n".join(samples[4].options)
        assert "Gold" not in page.inner_text("#replies")
        assert ask(page) == [shown(r) for r in comparison.answers(samples[4])]
        assert page.inner_text(".lm-gold") == f"Gold answer: {samples[4].letter}. {samples[4].answer}"
        page.locator("#replies summary").first.click()
        assert page.locator("#replies .lm-thought").first.is_visible()

        # The same question about an upload has no gold answer; a file that is no image is refused.
        page.click("#image button[aria-label*='Clear' i], #image button[aria-label*='Remove' i]")
        (tmp_path / "fake.png").write_text(HOSTILE)
        page.set_input_files("#image input[type=file]", tmp_path / "fake.png")
        page.wait_for_timeout(300)
        page.click("#ask")
        page.wait_for_selector("#replies [role=alert]")
        assert "cannot be read" in page.inner_text("#replies [role=alert]")

        # Whatever a model writes is text.
        page.locator("#examples button.thumbnail-item").nth(1).click()
        page.wait_for_function("document.querySelector('#replies [role=alert]') == null")
        told = f"<think> {HOSTILE} </think><answer> {HOSTILE} </answer>"
        said = [(stage, part) for stage in STAGES for part in (HOSTILE, reply(told, stage))]
        monkeypatch.setattr(comparison, "watch", lambda _: iter(said))
        assert [answer for _, answer in ask(page)] == [HOSTILE] * 3
        assert page.evaluate("window.pwned") is None
        assert page.locator("#replies img, #replies script").count() == 0

        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert {
            urlsplit(address).hostname for address in requests if not address.startswith(("data:", "blob:"))
        } == {"127.0.0.1"}
        assert faults == []


def ask(page: Any) -> list[tuple[str, str]]:
    """Presses the button, waits for all answers, returns each card's stage and answer."""
    page.evaluate("document.querySelectorAll('#replies .lm-foot').forEach(foot => foot.remove())")
    page.click("#ask")
    page.wait_for_function("document.querySelectorAll('#replies .lm-foot').length == 3", timeout=30_000)
    found = page.locator("#replies .lm-card").all()
    return [
        (card.locator("b").first.inner_text(), card.locator(".lm-answer").inner_text().strip())
        for card in found
    ]


def shown(reply: Reply) -> tuple[str, str]:
    """What a card reads."""
    names = {"base": "Base", "sft": "SFT", "grpo": "GRPO"}
    letter = f"{reply.answer.label}" if reply.answer.label else ""
    return names[reply.stage], f"{letter}{reply.answer.value or failure(reply.answer.failure)}"


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_without_a_traceback(run_dir: Path) -> None:
    line = [sys.executable, "-m", "lite_medrl", "demo", str(run_dir)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO
    ) as process:
        assert process.stderr is not None
        told = ""
        while "Ctrl-C" not in told:
            piece = process.stderr.readline()
            assert piece, told
            told += piece
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert err.strip() == "demo ended"
    assert out == ""
    assert time.perf_counter() - start < 10
