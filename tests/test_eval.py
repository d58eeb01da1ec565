"""The verb `eval` on a tiny model: rows, figures, protocols, shards, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny
from test_sets import BLUE, GREEN, MEDVL, RAD, RED, cell, parquet, png

from lite_medrl.cli import main
from lite_medrl.data.answers import judge, parse
from lite_medrl.data.images import load_image
from lite_medrl.data.sources import load_samples
from lite_medrl.measure import evaluate as asking
from lite_medrl.measure.benchmarks import benchmark, benchmarks, questions_of, surprises
from lite_medrl.measure.protocols import protocol
from lite_medrl.measure.shown import exchange
from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.recipe import load_recipe, to_yaml
from lite_medrl.tools import eval_page
from lite_medrl.tools.eval_folder import Shard
from lite_medrl.tools.run_folder import save_adapter
from lite_medrl.types import RecipeError

FAST = ["--max-new-tokens", "12", "--num-samples", "2"]


def lines(folder: Path, name: str = "answers.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def run(where: Path, *words: str, model: str | None = None, source: str | None = None) -> int:
    return main(
        ["eval", model or str(tiny.folder()), "-b", source or str(tiny.data()), "-o", str(where), *words]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("eval") / "whole"
    assert run(where, *FAST) == 0
    return where


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_one_row_an_answer(whole: Path) -> None:
    rows = lines(whole)
    assert Counter((r["shown"], r["number"]) for r in rows) == {
        ("real", 0): 12, ("blank", 0): 12, ("shuffled", 0): 12, ("real", 1): 12, ("real", 2): 12,
    }  # fmt: skip
    golds = {s.id: s for s in tiny.samples("test")}
    for row in rows:
        sample = golds[row["id"]]
        reading = parse(row["text"], options=sample.options)
        assert (row["parsed"], row["failure"]) == (reading.value, reading.failure)
        assert row["correct"] == (reading.value == sample.answer)
    places = [i for i, r in enumerate(rows) if r["number"] == 0 and r["shown"] == "real"]
    assert all(
        len({r["id"] for r in rows[i : i + 5]}) == 1 for i in places
    )  # a question's rows stand together


def test_greedy_answers_are_the_models_own(whole: Path) -> None:
    """What `ask` gives for the same wording, image by image."""
    from lite_medrl.measure.ask import ask
    from lite_medrl.model.generate import Sampling

    loaded, samples = tiny.loaded(), tiny.samples("test")
    found = {(r["id"], r["shown"]): r["text"] for r in lines(whole) if r["number"] == 0}
    greedy = {"num_samples": 0, "sampling": Sampling(12, temperature=0.0)}
    for shown, blank in (("real", False), ("blank", True)):
        asked = ask(loaded.model, loaded.processor, samples, blank=blank, **greedy)
        assert [found[a.sample.id, shown] for a in asked] == [a.greedy for a in asked]
    other = exchange(samples).other
    moved = [replace(s, images=other[s.images]) for s in samples]
    asked = ask(loaded.model, loaded.processor, moved, **greedy)
    assert [found[a.sample.id, "shuffled"] for a in asked] == [a.greedy for a in asked]
    assert [a.greedy for a in asked] != [found[s.id, "real"] for s in samples]
    for sample in samples:
        own, seen = (load_image(refs[0]).getpixel((0, 0)) for refs in (sample.images, other[sample.images]))
        assert own != seen


def test_the_seed_draws_other_answers(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "x", *FAST, "--images", "real", "--seed", "1") == 0
    one, other = (
        {(r["id"], r["number"]): r["text"] for r in lines(folder) if r["shown"] == "real"}
        for folder in (whole, tmp_path / "x")
    )
    assert all(one[key] == other[key] for key in one if not key[1])
    assert any(one[key] != other[key] for key in one if key[1])


def test_figures_come_from_the_rows(whole: Path) -> None:
    found, rows = results(whole), lines(whole)
    (one,) = found["benchmarks"]
    right = {
        s: sum(r["correct"] for r in rows if r["shown"] == s and not r["number"]) for s in found["images"]
    }
    assert one["closed"]["accuracy"] == right["real"] / 12
    assert one["closed"]["ci95"] == list(wilson_ci(right["real"], 12))
    relied = one["closed"]["reliance"]
    assert relied["blank"]["accuracy"] == right["blank"] / 12
    assert relied["visual_reliance"] == pytest.approx((right["real"] - right["shuffled"]) / 12)
    assert one["sampled"]["mean_at_k"] == sum(r["correct"] for r in rows if r["number"]) / 24
    assert one["id"] == "data.jsonl/test/12-closed/lite-v1[max_new_tokens=12,num_samples=2]"
    assert found["average"] is None
    assert found["model"]["stage"] == "base"
    assert found["protocol"]["example"].endswith("inside <answer> </answer>.")


def test_the_page_says_it_all(whole: Path) -> None:
    page = (whole / "results.md").read_text(encoding="utf-8")
    (one,) = results(whole)["benchmarks"]
    accuracy, (low, high) = one["closed"]["accuracy"], one["closed"]["ci95"]
    assert (
        f"| data.jsonl | 12 | {accuracy:.3f} [{low:.3f}, {high:.3f}] | {one['closed']['chance']:.3f} |"
        in page
    )
    assert "Research only" in page
    assert f"| 2 | {one['sampled']['pass_at_k']['2']:.3f} [" in page
    relied = one["closed"]["reliance"]
    assert f"| another image | 12 | {accuracy:.3f} | {relied['shuffled']['accuracy']:.3f} [" in page
    assert f"{relied['unchanged_frac']:.3f} [" in page
    assert "Beside published figures" not in page  # no published benchmark was asked


def test_two_shards_make_the_same_figures(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "shards"
    assert run(where, *FAST, "--shard", "2/2") == 0
    assert "still missing from other shards" in capsys.readouterr().out
    assert not (where / "results.json").exists()
    assert run(where, *FAST, "--shard", "1/2", "--json") == 0
    first, second = lines(where, "answers-1-of-2.jsonl"), lines(where, "answers-2-of-2.jsonl")
    images = [{r["id"]: r for r in tiny_rows()}[r["id"]]["image"] for r in (*first, *second)]
    assert not set(images[: len(first)]) & set(images[len(first) :])  # an image is in one shard
    assert without_place(results(where)) == without_place(results(whole))


def tiny_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in tiny.data().read_text(encoding="utf-8").splitlines()]


def without_place(found: dict[str, Any]) -> dict[str, Any]:
    """What two evaluations of the same questions share."""
    return {key: found[key] for key in ("model", "protocol", "images", "benchmarks", "average", "seed")}


def test_it_goes_on_where_it_was_stopped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    where, real, calls = tmp_path / "stopped", asking.sampled_texts, []
    small = ["diagnose.batch_size=6"]

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(asking, "sampled_texts", stop)
    assert run(where, *FAST, *small) == 130
    path = where / "answers.jsonl"
    assert len(lines(where)) == 4 * 5  # two batches of two questions
    text = path.read_text(encoding="utf-8")
    last = text.rstrip("\n").rpartition("\n")[0].rpartition("\n")[0]  # two rows of the last question are lost
    path.write_text(f'{last}\n{{"id": "torn', encoding="utf-8")
    assert run(where, *FAST, *small) == 2
    assert "add --resume to go on" in capfd.readouterr().err
    calls += [1, 1]
    assert run(where, *FAST, *small, "--resume") == 0
    assert len(calls) == 3 + 2 + 5  # 9 of 12 questions were left
    assert sorted(map(str, lines(where))) == sorted(map(str, lines(whole)))
    assert without_place(results(where)) == without_place(results(whole))


def test_a_folder_is_never_mixed(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "copy"
    shutil.copytree(whole, where)
    before = (where / "answers.jsonl").read_bytes()
    for words, told in (
        ([*FAST], "holds these answers already"),
        (["--max-new-tokens", "12", "--num-samples", "3", "--resume"], "was begun with another protocol"),
        ([*FAST, "--limit", "5", "--resume"], "was begun with another limit: None, now 5"),
        ([*FAST, "--images", "real", "--resume"], "was begun with another images"),
        ([*FAST, "--shard", "1/2", "--resume"], "was begun with another shards"),
    ):
        assert run(where, *words) == 2
        assert told in capfd.readouterr().err
    assert (where / "answers.jsonl").read_bytes() == before
    (where / "notes.txt").write_text("mine")
    assert run(where, *FAST, "--limit", "3", "--overwrite") == 0
    assert len(lines(where)) == 15
    assert (where / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--protocol", "medvlthinkr"], "no protocol 'medvlthinkr'; did you mean medvlthinker"),
        (["--images", "blank"], "--images: must be real"),
        (["--images", "real,grey"], "--images: must be real"),
        (["--shard", "3/2"], "--shard: must be i/n"),
        (["--limit", "0"], "--limit: must be 1 or more"),
        (["--stage", "sft"], "--stage: "),
        (["--split", "nowhere"], "no sample in split 'nowhere'"),
        (["model.dtyp=float16"], "unknown key model.dtyp; did you mean model.dtype"),
        (["--resume"], "holds no evaluation"),
        (["--adapter", "nowhere"], "adapter_config.json is missing"),
        (["--judge", "/nowhere"], "no folder '/nowhere'"),
        (["--seed", "-1"], "--seed: must be 0 or more"),
        (["--temperature", "nan"], "--temperature: must be above 0"),
    ],
)
def test_what_is_refused(
    words: list[str], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "out"
    code = run(where, *FAST, *words)
    assert told in capfd.readouterr().err
    assert code == 2
    assert not where.exists()


def test_a_benchmark_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "x", source=f"{tiny.data()},{tiny.data()}") == 2
    assert "is named twice" in capfd.readouterr().err


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `run` leaves it, with an adapter of SFT."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    words = [f"model.model_name_or_path={tiny.folder()}", "prompt.instruction=think , then answer ."]
    words += ["diagnose.max_completion_length=12"]
    (folder / "recipe.yaml").write_text(to_yaml(load_recipe(None, words)))
    loaded = tiny.loaded()
    save_adapter(tiny.with_lora(loaded.model, scale=0.5), loaded.processor, folder / "adapters" / "sft")
    return folder


def test_a_stage_of_a_run_is_asked_in_its_own_words(a_run: Path, tmp_path: Path) -> None:
    texts = {}
    for stage in ("base", "sft", None):
        where = tmp_path / f"{stage}"
        words = ["--stage", stage] if stage else []
        assert run(where, "--num-samples", "0", "--images", "real", *words, model=str(a_run)) == 0
        found = results(where)
        assert found["model"]["stage"] == (stage or "sft")
        assert found["protocol"]["example"].endswith("\nthink , then answer .")
        assert found["protocol"]["max_new_tokens"] == 12
        assert "prompt=" in found["protocol"]["id"]
        assert found["model"]["adapter"] is None if stage == "base" else found["model"]["adapter"]
        assert found["benchmarks"][0]["closed"]["reliance"] is None
        texts[stage] = [r["text"] for r in lines(where)]
    assert texts["sft"] == texts[None] != texts["base"]


def test_a_stage_that_is_not_there(a_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "x", "--stage", "grpo", model=str(a_run)) == 2
    assert "has no stage 'grpo'; it has base, sft" in capfd.readouterr().err
    assert run(tmp_path / "x", "--adapter", "y", model=str(a_run)) == 2
    assert "choose its adapter by --stage" in capfd.readouterr().err


def test_an_adapter_on_top_of_a_model(a_run: Path, tmp_path: Path) -> None:
    adapter = str(a_run / "adapters" / "sft")
    words = ["--num-samples", "0", "--images", "real", "--max-new-tokens", "12"]
    assert run(tmp_path / "x", *words, "--adapter", adapter) == 0
    assert run(tmp_path / "y", *words) == 0
    assert [r["text"] for r in lines(tmp_path / "x")] != [r["text"] for r in lines(tmp_path / "y")]
    assert results(tmp_path / "x")["model"]["adapter"]


def test_choosing_the_likeliest_letter(tmp_path: Path) -> None:
    from lite_medrl.model.choices import option_logps
    from lite_medrl.model.encode import encode_prompts

    assert run(tmp_path / "x", "--protocol", "letter-logprob") == 0
    rows = lines(tmp_path / "x")
    assert len(rows) == 36
    loaded = tiny.loaded()
    for row in (r for r in rows if r["shown"] == "real"):
        (sample,) = [s for s in tiny.samples("test") if s.id == row["id"]]
        letters = "ABCDEFGHIJ"[: len(sample.options)]
        text = "\n".join(
            [sample.question, *(f"{a}. {b}" for a, b in zip(letters, sample.options, strict=True))]
        )
        asked = "Answer with the option's letter from the given choices directly."
        put = tiny.Sample(**{**plain(sample), "question": f"{text}\n{asked}", "options": ()})
        inputs = encode_prompts(loaded.processor, [put], instruction="")
        (logps,) = option_logps(loaded.model, loaded.processor, inputs, [letters])
        assert row["option_logps"] == pytest.approx(logps, abs=1e-4)
        assert row["text"] == letters[logps.index(max(logps))]
        assert row["parsed"] == sample.options[letters.index(row["text"])]


def plain(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in type(sample).__dataclass_fields__}


@pytest.mark.parametrize("name", ["medvlthinker", "medbridgerl", "medevalkit-nojudge", "llava-med"])
def test_a_published_protocol_reads_by_its_own_rule(name: str, tmp_path: Path) -> None:
    assert run(tmp_path / "x", *FAST, "--images", "real", "--limit", "5", "--protocol", name) == 0
    found = results(tmp_path / "x")
    golds = {s.id: s for s in tiny.samples("test")}
    for row in lines(tmp_path / "x"):
        sample = golds[row["id"]]
        verdict = judge(row["text"], sample.answer, options=sample.options, profile=name)
        assert row["score"] == (verdict.score if verdict.counted else None)
        if not row["number"]:
            assert row["lite_v1"] == judge(row["text"], sample.answer, options=sample.options).correct
    assert f"read by `{name}`" in (tmp_path / "x" / "results.md").read_text()
    assert found["protocol"]["name"] == name


def six(folder: Path) -> Path:
    """MedVLThinker's file with a few questions of two of the six sets."""
    row = {
        "images": [cell(RED)], "question": "Which?", "options": '{"A": "red", "B": "blue"}', "answer": "red",
        "answer_label": "A", "reasoning": "", "dataset_name": "pmc_vqa", "dataset_index": 1, "hash": "",
        "misc": "",
    }  # fmt: skip
    rows = [
        row, row | {"dataset_index": 2, "images": [cell(BLUE)], "answer_label": "B", "answer": "blue"},
        row | {"dataset_index": 3, "images": [cell(RED), cell(GREEN)], "dataset_name": "vqa_rad_closed"},
        row | {"dataset_index": 4, "images": [cell(BLUE), cell(GREEN)], "dataset_name": "vqa_rad_closed"},
    ]  # fmt: skip
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows, MEDVL)
    return folder


def test_the_six_benchmarks_by_part_with_published_figures(tmp_path: Path) -> None:
    source = f"medvlthinker-6:{six(tmp_path / 'six')}"
    assert run(tmp_path / "x", *FAST, "--protocol", "medvlthinker", source=source) == 0
    found = results(tmp_path / "x")
    assert [one["name"] for one in found["benchmarks"]] == [
        "medvlthinker-6/pmc_vqa",
        "medvlthinker-6/vqa_rad_closed",
    ]
    accuracies = [one["closed"]["accuracy"] for one in found["benchmarks"]]
    assert found["average"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert (
        "vqa_rad_closed: 2 questions with options, published are 272" in found["benchmarks"][1]["surprises"]
    )
    page = (tmp_path / "x" / "results.md").read_text(encoding="utf-8")
    assert "| Qwen2.5-VL-7B | 49.30 | 52.94 | 18.89 | 65.39 | 65.71 | 68.75 | 53.50 | medvlthinker |" in page
    ours = next(line for line in page.splitlines() if "measured here |" in line)
    assert ours.split(" | ")[1].startswith(f"**{100 * accuracies[0]:.2f}** [")
    assert ours.split(" | ")[1].endswith("], n = 2")
    assert "mean of 2 parts | 4 |" in page
    assert "VQA-RAD (n = 272)" in page
    assert run(tmp_path / "y", *FAST, "--limit", "1", source=source) == 0
    assert "Beside published figures" not in (tmp_path / "y" / "results.md").read_text(encoding="utf-8")
    assert [one["n"] for one in results(tmp_path / "y")["benchmarks"]] == [1, 1]  # of each part


def test_named_benchmarks() -> None:
    rad = benchmark("vqa-rad:/data/rad")
    assert (rad.name, rad.source, rad.splits, rad.questions) == (
        "vqa-rad",
        "vqa-rad:/data/rad",
        ("test",),
        "all",
    )
    train = benchmark("vqa-rad", split="train")
    assert (train.name, train.splits, train.expected) == ("vqa-rad/train", ("train",), {})
    assert benchmark("mmmu-medical").splits == ("validation", "dev")
    assert benchmark("bloodmnist@28").source == "bloodmnist@28"
    own = benchmark(str(tiny.data()), questions="closed")
    assert (own.name, own.source, own.questions) == ("data.jsonl", str(tiny.data()), "closed")


def test_a_limit_draws_the_same_questions_each_time() -> None:
    one = benchmark(str(tiny.data()))
    some = questions_of(one, limit=5).samples
    assert [s.id for s in some] == [s.id for s in questions_of(one, limit=5).samples]
    assert [s.id for s in some] != [s.id for s in questions_of(one).samples[:5]]
    assert surprises(benchmark("embedded"), some) == []


def test_bad_rows_stop_it_or_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = tiny.rows(6, "test")
    path = tiny.write_data(tmp_path, [*rows, rows[0] | {"id": "bad", "answer": "pink"}])
    assert run(tmp_path / "x", *FAST, source=str(path)) == 2
    assert "pink" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()
    assert run(tmp_path / "x", *FAST, "--on-error", "skip", source=str(path)) == 0
    assert results(tmp_path / "x")["left_out"]["data.jsonl"]["skipped"] == 1
    page = (tmp_path / "x" / "results.md").read_text()
    assert "data.jsonl: 1 of 7 rows skipped, see skipped.jsonl" in page
    assert "gold answer 'pink' is not among the options" in page
    (skipped,) = lines(tmp_path / "x", "skipped.jsonl")
    assert skipped["fault"].startswith(f"{path}:7: gold answer 'pink'")


def test_open_answers_and_their_judge(tmp_path: Path) -> None:
    closed = tiny.rows(3, "test")
    free = [row | {"id": f"open-{i}", "options": []} for i, row in enumerate(tiny.rows(3, "test", seed=1))]
    path = tiny.write_data(tmp_path, [*closed, *free])
    assert run(tmp_path / "x", *FAST, "--judge", str(tiny.folder()), source=str(path)) == 0
    (one,) = results(tmp_path / "x")["benchmarks"]
    assert (one["closed"]["n"], one["open"]["n"]) == (3, 3)
    judged = lines(tmp_path / "x", "judged.jsonl")
    said = {r["id"]: r for r in lines(tmp_path / "x") if not r["number"] and r["shown"] == "real"}
    assert [j["id"] for j in judged] == [i for i, r in said.items() if not r["options"]]
    for j in judged:
        assert 0 <= j["p_yes"] <= 1
        assert said[j["id"]]["parsed"] is not None or j["p_yes"] == 0
    accepted = sum(j["p_yes"] > 0.5 for j in judged)
    assert one["open"]["judge"]["accuracy"] == accepted / 3
    assert "accepted by the judge" in (tmp_path / "x" / "results.md").read_text()


def test_two_evaluations_are_paired(whole: Path, a_run: Path, tmp_path: Path, capfd: Any) -> None:
    other = tmp_path / "other"
    assert run(other, *FAST, "--adapter", str(a_run / "adapters" / "sft")) == 0
    capfd.readouterr()
    assert main(["compare", str(whole), str(other), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    right = [
        {r["id"]: r["correct"] for r in lines(folder) if not r["number"] and r["shown"] == "real"}
        for folder in (whole, other)
    ]
    assert found["n"] == 12
    assert found["difference"] == pytest.approx(sum(right[1].values()) / 12 - sum(right[0].values()) / 12)
    assert found["mcnemar"]["b"] == sum(right[0][i] and not right[1][i] for i in right[0])
    assert (found["split"], found["a"]["stage"], found["b"]["stage"]) == (
        "data.jsonl/test",
        "base",
        "adapter",
    )
    assert found["a"]["pass_at_k"] == results(whole)["benchmarks"][0]["sampled"]["pass_at_k"]
    assert found["one_protocol"]
    assert run(tmp_path / "mv", *FAST, "--protocol", "medvlthinker") == 0
    capfd.readouterr()
    assert main(["compare", str(whole), str(tmp_path / "mv")]) == 0
    assert "two protocols" in capfd.readouterr().out
    (other / "results.json").unlink()
    assert main(["compare", str(whole), str(other)]) == 2
    assert "is not finished" in capfd.readouterr().err
    assert main(["compare", str(whole), str(a_run)]) == 2
    assert "no results.json" in capfd.readouterr().err


def test_an_image_is_one_image_wherever_it_lies(tmp_path: Path) -> None:
    """Published Parquet files hold an image once a question."""
    colours = [RED, BLUE, RED, BLUE, RED, GREEN]
    rows = [{"image": cell(c), "question": f"q{i}?", "answer": "yes"} for i, c in enumerate(colours)]
    parquet(tmp_path / "rad" / "data" / "test-0.parquet", rows, RAD)
    checked = questions_of(benchmark(f"vqa-rad:{tmp_path / 'rad'}"))
    samples = checked.samples
    assert [s.images == samples[0].images for s in samples] == [c == RED for c in colours]
    assert len(checked.digests) == 3
    found = exchange(samples)
    for sample in samples:
        own, other = (
            load_image(refs[0]).getpixel((0, 0)) for refs in (sample.images, found.other[sample.images])
        )
        assert own != other


def test_a_rule_that_leaves_answers_out_says_of_how_many(tmp_path: Path) -> None:
    """LLaVA-Med's released rule: a wrong answer that holds yes or no is in no mean."""
    found = {
        "n": 20, "counted": 10, "accuracy": 1.0, "ci95": [0.722, 1.0], "chance": 0.5,
        "parse_failure_frac": 0.0, "reliance": None,
    }  # fmt: skip
    (line,) = eval_page.told({"closed": found, "surprises": []})
    assert "n = 20, of which the rule counts 10" in line


def slake(folder: Path) -> Path:
    (folder / "imgs").mkdir(parents=True)
    (folder / "imgs" / "a.png").write_bytes(png(RED))
    row = {
        "img_name": "a.png", "q_lang": "en", "location": "Head", "modality": "MRI", "answer_type": "CLOSED",
        "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "img_id": 1,
    }  # fmt: skip
    rows = [
        row | {"qid": 1, "question": "Is it a lung?", "answer": "Yes"},
        row | {"qid": 2, "question": "T1 or T2?", "answer": "T2"},
        row | {"qid": 3, "question": "Which organ?", "answer": "Brain", "answer_type": "OPEN"},
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


def test_slakes_closed_questions_by_the_rules_that_know_them(tmp_path: Path) -> None:
    yes, weighting, organ = load_samples(f"slake:{slake(tmp_path / 's')}", "test", questions="all")
    assert [s.answer_type for s in (yes, weighting, organ)] == ["closed", "closed", "open"]
    kit, ours = protocol("medevalkit-nojudge"), protocol("lite-v1")
    assert kit.words(yes) == "Is it a lung?\nAnswer the question using a single word or phrase."
    assert [asking.is_closed(s, kit) for s in (yes, weighting, organ)] == [True, True, False]
    assert [asking.is_closed(s, ours) for s in (yes, weighting, organ)] == [True, False, False]
    for sample, text, correct in (
        (yes, "Yes", True), (yes, "Yes, the lung.", False), (weighting, "T2.", True),
        (weighting, "T1", False),
    ):  # fmt: skip
        row = asking.short_row(sample, 0, text, kit)
        assert (row["correct"], row["parsed"] == sample.answer) == (correct, correct)
        direct = judge(
            text, sample.answer, options=sample.options or None, answer_type="closed", profile=kit.profile
        )
        assert row["score"] == direct.score
    where = tmp_path / "x"
    words = ["--protocol", "medevalkit-nojudge", "--max-new-tokens", "4", "--images", "real"]
    assert run(where, *words, source=f"slake:{tmp_path / 's'}") == 0
    (one,) = results(where)["benchmarks"]
    assert (one["closed"]["n"], one["open"]["n"]) == (2, 1)


def test_open_questions_are_not_sampled_and_have_their_own_reliance(tmp_path: Path) -> None:
    closed = tiny.rows(3, "test")
    free = [row | {"id": f"open-{i}", "options": []} for i, row in enumerate(tiny.rows(4, "test", seed=1))]
    path = tiny.write_data(tmp_path, [*closed, *free])
    assert run(tmp_path / "x", *FAST, source=str(path)) == 0
    rows, (one,) = lines(tmp_path / "x"), results(tmp_path / "x")["benchmarks"]
    assert {r["id"] for r in rows if r["number"]} == {r["id"] for r in closed}
    assert (one["sampled"]["n"], one["open"]["n"]) == (3, 4)
    assert one["open"]["reliance"]["blank"]["n"] == 4
    page = (tmp_path / "x" / "results.md").read_text(encoding="utf-8")
    assert "image shown (open questions)" in page
    assert "open questions, n = 4: exact match 0." in page
    assert main(["compare", str(tmp_path / "x"), str(tmp_path / "x"), "--json"]) == 0


def test_compare_keeps_open_questions_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    closed = tiny.rows(3, "test")
    free = [row | {"id": f"open-{i}", "options": []} for i, row in enumerate(tiny.rows(4, "test", seed=1))]
    bad = closed[0] | {"id": "bad", "answer": "pink"}
    path = tiny.write_data(tmp_path, [*closed, *free, bad])
    for name, tokens in (("x", "12"), ("y", "2")):
        words = ["--max-new-tokens", tokens, "--num-samples", "0", "--images", "real", "--on-error", "skip"]
        assert run(tmp_path / name, *words, source=str(path)) == 0
    capfd.readouterr()
    assert main(["compare", str(tmp_path / "x"), str(tmp_path / "y"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["n"], found["open"]["n"]) == (3, 4)
    assert found["chance"] == pytest.approx(sum(1 / len(r["options"]) for r in closed) / 3)
    one, other = (results(tmp_path / name)["benchmarks"][0]["open"]["f1"]["mean"] for name in "xy")
    assert found["open"]["f1"]["difference"] == pytest.approx(other - one)
    assert main(["compare", str(tmp_path / "x"), str(tmp_path / "y")]) == 0
    said = capfd.readouterr().out
    assert "A  1 rows skipped for a fault" in said
    assert "open questions (n = 4), B - A: exact match" in said


@pytest.mark.parametrize("spoilt", ["results.json", "answers.jsonl"])
@pytest.mark.parametrize("text", ["", "[]", "{}", "7", "{"])
def test_compare_names_a_damaged_evaluation(
    whole: Path, tmp_path: Path, spoilt: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "copy"
    shutil.copytree(whole, where)
    (where / spoilt).write_text(f"{text}\n" if text else "")
    assert main(["compare", str(whole), str(where)]) == 2
    assert str(where) in capfd.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]", "7"])
def test_a_row_that_is_none_is_named(
    whole: Path, tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "copy"
    shutil.copytree(whole, where)
    rows = (where / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    (where / "answers.jsonl").write_text("\n".join([text, *rows[1:]]) + "\n", encoding="utf-8")
    assert run(where, *FAST, "--resume") == 2
    assert "answers.jsonl: byte 0 is no answer of an evaluation" in capfd.readouterr().err


def test_a_shard_that_lost_rows_is_not_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "x"
    assert run(where, *FAST, "--shard", "1/2") == 0
    path = where / "answers-1-of-2.jsonl"
    path.write_text(
        "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8"
    )
    capfd.readouterr()
    assert run(where, *FAST, "--shard", "2/2") == 0
    assert "1 of 12 questions are still missing" in capfd.readouterr().out
    assert run(where, *FAST, "--shard", "1/2", "--resume") == 0
    assert results(where)["benchmarks"][0]["n"] == 12


def test_an_adapter_of_other_weights(
    a_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "run"
    shutil.copytree(a_run, other)
    (other / "progress.json").write_text(json.dumps({"base": "0123456789abcdef"}))
    assert run(tmp_path / "x", *FAST, "--adapter", str(other / "adapters" / "sft")) == 2
    assert "trained on other weights" in capfd.readouterr().err
    assert run(tmp_path / "x", *FAST, model=str(other)) == 2
    assert "trained on other weights" in capfd.readouterr().err
    config = other / "adapters" / "sft" / "adapter_config.json"
    told = json.loads(config.read_text()) | {"base_model_name_or_path": "Qwen/Other"}
    config.write_text(json.dumps(told))
    shutil.copytree(other / "adapters" / "sft", tmp_path / "alone" / "deep" / "sft")
    words = ["--adapter", str(tmp_path / "alone" / "deep" / "sft"), "--limit", "1"]
    assert run(tmp_path / "y", *FAST, *words) == 0
    assert "says that it was trained on Qwen/Other" in caplog.text


def test_replaced_pictures_are_other_questions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tiny.write_data(tmp_path, tiny.rows(4, "test"))
    words = ["--max-new-tokens", "2", "--num-samples", "0", "--images", "real"]
    assert run(tmp_path / "x", *words, source=str(path)) == 0
    (tmp_path / "red.png").write_bytes(png(GREEN))
    (tmp_path / "blue.png").write_bytes(png(GREEN))
    (tmp_path / "green.png").write_bytes(png(RED))
    (tmp_path / "grey.png").write_bytes(png(RED))
    assert run(tmp_path / "x", *words, "--resume", source=str(path)) == 2
    assert "was begun with other questions, options, answers or pictures" in capfd.readouterr().err


def test_letters_are_not_asked_of_open_questions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    closed, (free,) = tiny.rows(2, "test"), tiny.rows(1, "test", seed=1)
    path = tiny.write_data(tmp_path, [*closed, free | {"id": "open", "options": []}])
    assert run(tmp_path / "x", "--protocol", "letter-logprob", source=str(path)) == 0
    assert "data.jsonl: 1 open questions not asked, as letters are chosen" in capfd.readouterr().out
    alone = tiny.write_data(tmp_path, [free | {"id": "open", "options": []}])
    assert run(tmp_path / "y", "--protocol", "letter-logprob", source=str(alone)) == 2
    assert "no question has options" in capfd.readouterr().err


def test_one_image_alone_has_no_other(tmp_path: Path) -> None:
    rows = [row | {"image": "red.png"} for row in tiny.rows(3, "test")]
    path = tiny.write_data(tmp_path, rows)
    words = ["--max-new-tokens", "2", "--num-samples", "0", "--images", "real,shuffled"]
    assert run(tmp_path / "x", *words, source=str(path)) == 0
    assert "| there is none |" in (tmp_path / "x" / "results.md").read_text(encoding="utf-8")
    assert len(lines(tmp_path / "x")) == 3


def test_a_prompt_that_is_too_long_is_refused_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.rows(3, "test")
    rows[2]["question"] = "which colour ? " * 2000
    path = tiny.write_data(tmp_path, rows)
    assert run(tmp_path / "x", *FAST, source=str(path)) == 2
    assert f"sample {rows[2]['id']}: its prompt has" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


def test_lengths_are_checked_with_every_image_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(asking, "check_prompt_lengths", lambda model, processor, put, **_: seen.extend(put))
    samples, loaded = tiny.samples("test"), tiny.loaded()
    found = exchange(samples)
    asking.check_lengths(loaded, samples, protocol("lite-v1"), found, ("real", "shuffled"))
    assert [s.images for s in seen[:2]] == [samples[0].images, found.other[samples[0].images]]
    assert len(seen) == 2 * len(samples)


def test_a_finished_evaluation_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    where = tmp_path / "copy"
    shutil.copytree(whole, where)
    before = [(where / name).read_bytes() for name in ("results.json", "results.md", "answers.jsonl")]
    assert run(where, *FAST, "--resume") == 0
    assert [(where / name).read_bytes() for name in ("results.json", "results.md", "answers.jsonl")] == before


def test_a_run_that_is_not_there_is_no_hub_id(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "x", *FAST, model=str(tmp_path / "mine")) == 2
    assert f"there is no folder {tmp_path / 'mine'}" in capfd.readouterr().err


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        tiny.write_data(tmp_path / name, tiny.rows(2, "test"))
    both = [str(tmp_path / name / "data.jsonl") for name in "ab"]
    assert [one.name for one in benchmarks(",".join(both))] == both
    with pytest.raises(RecipeError, match="an empty name"):
        benchmarks("embedded,")


def test_shards() -> None:
    assert Shard.read(None) == Shard(1, 1)
    assert Shard.read("2/4").file == "answers-2-of-4.jsonl"
    assert Shard.read("1/1").file == "answers.jsonl"
    for text in ("0/2", "2", "a/b", "5/4", "1/0"):
        with pytest.raises(RecipeError, match="--shard"):
            Shard.read(text)


def test_json_is_all_that_stdout_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "x", *FAST, "--limit", "2", "--json") == 0
    assert json.loads(capfd.readouterr().out) == results(tmp_path / "x")


def test_parquet_schema_is_the_published_one() -> None:
    assert set(MEDVL) == {
        "images", "question", "options", "answer_label", "answer", "reasoning", "dataset_name",
        "dataset_index", "hash", "misc",
    }  # fmt: skip
    assert MEDVL["options"] == pa.string()
