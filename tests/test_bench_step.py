"""The step benchmark: the same numbers from every implementation, tokens counted by hand, and honest rows."""

from __future__ import annotations

import csv
import json
import multiprocessing
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from bitsandbytes.nn import Linear4bit
from tiny import lora_grads
from torch import nn

from lite_medrl.cli import main
from lite_medrl.tools.bench import compare, memory, rows, weights, worker
from lite_medrl.tools.bench.case import Case, Job
from lite_medrl.tools.bench.compare import ALLOWED, against, bench_step, make_cases
from lite_medrl.tools.bench.rollouts import PAD, image_side, labelled, rollouts
from lite_medrl.tools.bench.rows import Row
from lite_medrl.tools.bench.shapes import SHAPES
from lite_medrl.tools.bench.step import Step
from lite_medrl.tools.bench.trainers import WithLogits
from lite_medrl.types import DataError, RecipeError

P, R, G = 64, 6, 4
SMALL = Case("tiny", P, R, G, repeats=2)
SEPARATE, TREE = G * (P + R), P + G * (R - 1)  # nothing is predicted from a completion's last token
PATCHES = 4 * 7**2  # of the image: 7 x 7 tokens are at most nine tenths of a prompt


def step_of(impl: str, folder: Path, *phases: str, **changes: Any) -> Step:
    return Step(Job(impl, phases or ("update",), replace(SMALL, **changes), str(folder)))


# --- end to end ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_bench_step_prints_rows_that_agree(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", str(P), "--response", str(R), "--generations", str(G), "--repeats", "2"]
    path = tmp_path / "new" / "rows.csv"
    assert main(["bench", "step", "--tiny", "--json", "--minutes", "8", "-o", str(path), *words]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found.keys() == {"rows", "left_out"}
    assert all(tuple(row) == rows.COLUMNS for row in found["rows"])
    by_name = {(row["impl"], row["phase"]): row for row in found["rows"]}
    pairs = {(impl, phase) for impl in ("trl", "lite-medrl") for phase in ("update", "old_logp")}
    assert by_name.keys() >= pairs  # and Unsloth's where it is installed
    for name in pairs:
        row = by_name[name]
        assert 0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"]
        assert (row["repeats"], row["check"], row["questions_per_image"]) == (2, "ok", 1)
        assert row["questions_per_s"] == pytest.approx(1 / row["p50_s"])
        assert row["peak_gib"] is None or 0 < row["peak_gib"] < 1
    for phase in ("update", "old_logp"):
        theirs, ours = by_name["trl", phase], by_name["lite-medrl", phase]
        assert (theirs["trunk_tokens"], theirs["image_patches"]) == (SEPARATE, G * PATCHES)
        assert (ours["trunk_tokens"], ours["real_tokens"], ours["image_patches"]) == (TREE, TREE, PATCHES)
        assert abs(ours["loss"] - theirs["loss"]) < 1e-6
        assert ours["times_as_fast"] == pytest.approx(theirs["p50_s"] / ours["p50_s"])
        assert "fused head needs CUDA" in theirs["note"]
    ours = by_name["lite-medrl", "update"]
    assert abs(ours["loss"]) > 1e-4
    assert ours["grad_max"] > 1e-3
    assert ours["grad_diff"] < 1e-5 * ours["grad_max"]
    assert by_name["lite-medrl", "old_logp"]["logp_diff"] < 1e-5
    with path.open(newline="") as file:
        stored = list(csv.DictReader(file))
    assert [(row["impl"], row["phase"]) for row in stored] == [(r["impl"], r["phase"]) for r in found["rows"]]
    assert all(row["versions"].startswith("python ") and row["device"] and row["date"] for row in stored)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--shape", "qwen3-vl-4"], "unknown shape 'qwen3-vl-4': did you mean 'qwen3-vl-4b'?"),
        (["--tiny", "--impl", "lite-medlr"], "'lite-medlr': did you mean 'lite-medrl'?"),
        (["--tiny", "--phase", "updates"], "unknown phase 'updates': did you mean 'update'?"),
        (["--tiny", "--shape", "qwen3-vl-2b"], "--tiny is a shape of its own"),
        (["--tiny", "--prompt", "3"], "--prompt: 3 is too small; give at least 32"),
        (["--tiny", "--questions-per-image", "0"], "--questions-per-image: 0 is too small"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lite-medrl: ")
    assert part in err
    assert len(err.splitlines()) == 1


def test_a_machine_without_a_card_needs_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="give --tiny"):
        make_cases(False, [], {})
    with pytest.raises(RecipeError, match="no CUDA card"):
        make_cases(True, [], {"device": "cuda"})
    (tiny_case,) = make_cases(True, [], {})
    assert (tiny_case.prompt, tiny_case.response, tiny_case.generations, tiny_case.threads) == (512, 64, 8, 1)
    (case,) = make_cases(False, ["qwen2.5-vl-3b"], {"response": 64})
    assert (case.prompt, case.response, case.quantised, case.gradient_checkpointing) == (1000, 64, True, True)


# --- what is compared ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", ["update", "sft"])
def test_the_head_that_stands_in_for_trls_is_trls(phase: str, tmp_path: Path) -> None:
    """TRL's own fused head runs here in Triton's interpreter."""
    step = step_of("trl", tmp_path, phase, ragged=True, questions_per_image=2, generations=2)
    batch = step.batch(phase, step.case)
    if phase == "update":
        batch["old_per_token_logps"] = step.old_logps(batch)
    assert isinstance(step.model, WithLogits)
    found = []
    for model in (step.trainer.model, step.model):
        step.model = model
        found.append((float(step.run(phase, batch)), lora_grads(step.trainer.model)))
    (loss, grads), (plain_loss, plain_grads) = found
    assert plain_loss == pytest.approx(loss, abs=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(plain_grads[name], grad, rtol=1e-4, atol=1e-7)
    metrics = step.trainer._metrics["train"]
    assert metrics["entropy"][0] == pytest.approx(metrics["entropy"][1], rel=1e-5)


@pytest.mark.parametrize("changes", [{"ragged": True, "questions_per_image": 2}, {"quantised": True}])
def test_both_sft_trainers_agree(tmp_path: Path, changes: dict[str, Any]) -> None:
    case = replace(SMALL, **changes)
    looks = {impl: step_of(impl, tmp_path, "sft", **changes).look("sft") for impl in ("trl", "lite-medrl")}
    count = case.questions_per_image * (P + R)
    assert looks["trl"]["trunk_tokens"] == count
    assert looks["trl"]["real_tokens"] == int((labelled(case)["input_ids"] != PAD).sum())
    jobs = {impl: Job(impl, ("sft",), case, str(tmp_path)) for impl in looks}
    theirs, ours = (compare.measured(jobs[impl], look, [1.0, 2.0]) for impl, look in looks.items())
    row = against(ours, theirs, jobs)
    assert row.check == "ok"
    assert row.times_as_fast == 1.0
    limit = ALLOWED["bfloat16" if case.quantised else "float32"][0]
    assert row.loss_diff is not None
    assert row.loss_diff < limit * 10


def test_an_update_under_nf4_and_checkpointing_agrees(tmp_path: Path) -> None:
    """TRL rounds LoRA weights of a quantised model to bfloat16, ours keep fp32."""
    changes = {"quantised": True, "gradient_checkpointing": True}
    looks = {impl: step_of(impl, tmp_path, **changes).look("update") for impl in ("trl", "lite-medrl")}
    assert looks["lite-medrl"]["loss"] == pytest.approx(looks["trl"]["loss"], abs=1e-3)
    grads = [torch.load(tmp_path / f"{impl}-update.pt") for impl in looks]
    largest = max(float(grad.abs().max()) for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=0.05 * largest)


def test_a_difference_leaves_no_speed_up(tmp_path: Path) -> None:
    jobs = {impl: Job(impl, ("update",), SMALL, str(tmp_path)) for impl in ("trl", "lite-medrl")}
    grad = torch.tensor([1.0, -2.0])
    torch.save({"a": grad}, jobs["trl"].tensors("update"))
    theirs = row_of("trl", loss=0.5, p50_s=3.0)
    for wrong, loss, check in (
        (grad + 1e-3, 0.5, "ok"),
        (grad + 1e-2, 0.5, "red: grad_diff 1.0e-02 is over 2.0e-03"),
        (grad, 0.50001, "red: loss_diff 1.0e-05 is over 1.0e-06"),
        (grad * torch.nan, 0.5, "red: grad_diff nan is over 2.0e-03"),
    ):
        torch.save({"a": wrong}, jobs["lite-medrl"].tensors("update"))
        row = against(row_of("lite-medrl", loss=loss, p50_s=1.5), theirs, jobs)
        assert row.check == check
        assert row.times_as_fast == (2.0 if check == "ok" else None)
        assert row.grad_max == 2.0


# --- rollouts and counts ------------------------------------------------------------------------------------
def test_rollouts_have_the_form_of_trls() -> None:
    case = replace(SMALL, ragged=True, questions_per_image=3)
    batch = rollouts(case)
    count = 3 * G
    assert image_side(P) == 7
    for name, width in (("prompt", P), ("completion", R)):
        ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
        assert ids.shape == mask.shape == (count, width)
        assert torch.equal(mask.bool(), ids != PAD)
        padded_side = mask if name == "completion" else mask.flip(1)
        assert torch.equal(padded_side, padded_side.sort(1, descending=True).values)
        assert len(set(mask.sum(1).tolist())) > 1
    assert batch["prompt_mask"].sum(1).view(3, G).unique(dim=1).squeeze(1).tolist() == [64, 62, 60]
    assert ((batch["prompt_ids"] == SHAPES["tiny"].image_token).sum(1) == 49).all()
    groups = batch["prompt_ids"].view(3, G, P)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique(dim=0)) == 3
    assert len(batch["completion_ids"][:, 0].unique()) == count  # they share no first token
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    torch.testing.assert_close(batch["advantages"].view(3, G).sum(1), torch.zeros(3), atol=1e-6, rtol=0)
    assert batch["pixel_values"].shape == (count * PATCHES, SHAPES["tiny"].patch_values)
    assert batch["image_grid_thw"].tolist() == [[1, 14, 14]] * count
    assert batch["mm_token_type_ids"].shape == (count, P + R)
    again = rollouts(case)
    assert all(torch.equal(batch[k], again[k]) for k in batch if isinstance(batch[k], torch.Tensor))
    other = rollouts(replace(case, seed=1))
    assert not torch.equal(batch["completion_ids"], other["completion_ids"])
    source = Path(trl.trainer.grpo_trainer.__file__).read_text(encoding="utf-8")
    assert all(f'output["{key}"]' in source or f'"{key}":' in source for key in batch)


@pytest.mark.parametrize(
    ("impl", "questions", "tokens", "images"),
    [
        ("trl", 1, SEPARATE, G),
        ("lite-medrl-separate", 1, SEPARATE, G),
        ("lite-medrl", 1, TREE, 1),
        # 3 words and the image's 49 tokens are the root, then 12 words of each question and its completions.
        ("lite-medrl", 2, 52 + 2 * (12 + G * (R - 1)), 1),
        ("trl", 2, 2 * SEPARATE, 2 * G),
    ],
)
@pytest.mark.parametrize("phase", ["update", "old_logp"])
def test_tokens_are_counted_by_hand(
    tmp_path: Path, impl: str, questions: int, tokens: int, images: int, phase: str
) -> None:
    step = step_of(impl, tmp_path, phase, questions_per_image=questions)
    step.warm_up(phase)  # where a model is asked once whether it can be packed
    look = step.look(phase)
    assert (look["trunk_tokens"], look["real_tokens"]) == (tokens, tokens)
    assert look["image_patches"] == images * PATCHES


def test_a_recomputed_layer_counts_once_and_padding_is_told_apart(tmp_path: Path) -> None:
    step = step_of("trl", tmp_path, ragged=True, gradient_checkpointing=True)
    look = step.look("update")
    batch = rollouts(step.case)
    real = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    assert (look["trunk_tokens"], look["real_tokens"]) == (SEPARATE, real)
    assert real < SEPARATE


# --- models -------------------------------------------------------------------------------------------------
PARAMETERS = {
    "qwen3-vl-2b": 2_127_532_032, "qwen3-vl-4b": 4_437_815_808, "qwen3-vl-8b": 8_767_123_696,
    "qwen2.5-vl-3b": 3_754_622_976, "qwen2.5-vl-7b": 8_292_166_656,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    model = weights.on_meta(SHAPES[name])
    head = model.lm_head.weight.numel() if SHAPES[name].tied else 0
    assert sum(p.numel() for p in model.parameters()) - head == PARAMETERS[name]
    assert all(p.is_meta for p in model.parameters())


def test_only_the_text_models_linear_layers_are_nf4_and_nothing_is_left_on_meta() -> None:
    make = {"device": "cpu", "dtype": torch.float32, "seed": 3}
    model = weights.make_base(SHAPES["tiny"], quantised=True, **make)
    text = model.model.language_model
    packed = [m for m in text.modules() if isinstance(m, nn.Linear)]
    assert len(packed) == 3 * 7
    assert all(isinstance(m, Linear4bit) and m.weight.quant_type == "nf4" for m in packed)
    assert {type(m) for m in model.model.visual.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert model.lm_head.weight is text.embed_tokens.weight
    assert not [name for name, x in model.state_dict().items() if x.is_meta]
    assert float(text.layers[0].input_layernorm.weight.min()) == 1.0
    assert float(text.embed_tokens.weight.std()) == pytest.approx(0.02, rel=0.05)
    identity = torch.eye(128)
    assert float(text.layers[1].mlp.up_proj(identity).std()) == pytest.approx(0.02, rel=0.1)
    again = weights.make_base(SHAPES["tiny"], quantised=True, **make)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
    plain = weights.with_lora(weights.make_base(SHAPES["tiny"], quantised=False, **make))
    assert all(bool(p.any()) for p in plain.parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in plain.parameters()) == 3 * 7 * 2


# --- time, memory, rows -------------------------------------------------------------------------------------
def test_peak_memory_is_what_a_call_needs() -> None:
    def call() -> None:
        large = torch.ones(32 * 2**20)  # 128 MiB
        del large
        torch.ones(8 * 2**20)

    torch.ones(128 * 2**20)  # a higher peak before
    found = memory.peak_gib(call, torch.device("cpu"))
    if found is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert found == pytest.approx(0.125, abs=0.02)


LOOK = {"peak_gib": 0.5, "trunk_tokens": 280, "real_tokens": 270, "image_patches": 784, "loss": 0.25}


def row_of(impl: str, **values: Any) -> Row:
    known = {"prompt": P, "response": R, "generations": G, "questions_per_image": 1, "phase": "update"}
    known |= {"shape": "tiny", "dtype": "float32", "p50_s": 2.0, "p20_s": 1.0, "p80_s": 4.0, "repeats": 2}
    known |= {"questions_per_s": 0.5} | LOOK
    return Row(impl=impl, **(known | values))


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows.append(path, [row_of("trl", p50_s=1.23456789)])
    rows.append(path, [row_of("lite-medrl", peak_gib=None)])
    with path.open(newline="") as file:
        header, first, second = csv.reader(file)
    assert tuple(header) == rows.COLUMNS == tuple(asdict(row_of("trl")))
    assert (first[header.index("p50_s")], first[header.index("peak_gib")]) == ("1.23457", "0.5")
    assert second[header.index("peak_gib")] == ""
    path.write_text("impl,phase\n")
    with pytest.raises(DataError, match="other columns"):
        rows.append(path, [row_of("trl")])
    assert path.read_text() == "impl,phase\n"


def test_a_table_tells_what_was_compared() -> None:
    ours = row_of("lite-medrl", p50_s=0.5, times_as_fast=4.0, loss_diff=2e-9, grad_diff=1e-8, grad_max=0.1)
    red = row_of("unsloth", check="red: loss_diff 1.0e-05 is over 1.0e-06", note="a note")
    head, first, second, third, note = rows.table([row_of("trl"), ours, red])
    assert head == "update  tiny  float32  P=64 R=6 G=4  questions per image: 1"
    assert (
        "2.000 s [1.000, 4.000]    0.500 GiB     280 tokens (270 real)  784 patches  loss 0.2500000" in first
    )
    assert second.endswith("4.00 x as fast  loss differs by 2.0e-09  gradients by 1.0e-08 of 1.0e-01")
    assert third.endswith("red: loss_diff 1.0e-05 is over 1.0e-06")
    assert "as fast" not in first + third
    assert note == "note: unsloth: a note"


def test_a_row_names_the_threads() -> None:
    assert rows.device_name("cpu", 1).endswith(", 1 thread")
    assert rows.device_name("cpu", 0).endswith(
        f", {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    )


def test_percentiles() -> None:
    assert [rows.percentile([4.0, 1.0, 2.0, 3.0, 5.0], share) for share in (0.2, 0.5, 0.8)] == [1.8, 3.0, 4.2]
    assert rows.percentile([7.0], 0.8) == 7.0


# --- processes ----------------------------------------------------------------------------------------------
class Scripted(worker.Worker):
    """A process that answers from a script: seconds, or an error."""

    script: dict[str, Any]
    asked: list[tuple[str, str]]

    def __init__(self, job: Job) -> None:
        self.job = job

    def ask(self, command: str, phase: str, end: float) -> Any:
        self.asked.append((self.job.impl, command))
        answer = self.script[self.job.impl]
        if isinstance(answer, Exception) and command != "warm_up":
            raise answer
        return LOOK | {"phase": phase} if command == "look" else answer

    def died(self) -> bool:
        return "killed" in str(self.script[self.job.impl])

    def stop(self) -> None:
        self.asked.append((self.job.impl, "stop"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Scripted]:
    class Fresh(Scripted):
        script: dict[str, Any] = {}  # noqa: RUF012 (each test has its own class)
        asked: list[tuple[str, str]] = []  # noqa: RUF012

    monkeypatch.setattr(compare, "Worker", Fresh)
    monkeypatch.setattr(compare, "against", lambda row, reference, jobs: row)
    return Fresh


def test_processes_are_measured_in_turns_on_a_cpu_and_apart_on_a_card(scripted: type[Scripted]) -> None:
    scripted.script = {"trl": 2.0, "lite-medrl": 0.5}
    found, _ = compare.compare(SMALL, ("update",), ["trl", "lite-medrl"], time.monotonic() + 60)
    assert [(row.impl, row.p50_s, row.repeats) for row in found] == [("trl", 2.0, 2), ("lite-medrl", 0.5, 2)]
    commands = ["warm_up", "look", "seconds", "seconds", "stop"]
    assert scripted.asked == [(impl, c) for c in commands for impl in ("trl", "lite-medrl")]
    scripted.asked.clear()
    monkey = replace(SMALL, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "stamp", lambda device, threads: {})
        compare.compare(monkey, ("update",), ["trl", "lite-medrl"], time.monotonic() + 60)
    assert scripted.asked == [(impl, c) for impl in ("trl", "lite-medrl") for c in commands]


def test_repeats_stop_when_time_is_up(scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that TRL's step moves by 2 s and ours by 0.5 s: 10 s hold four turns, 9.9 s three."""
    scripted.script, now = {"trl": 2.0, "lite-medrl": 0.5}, [0.0]
    ask = scripted.ask

    def later(self: Scripted, command: str, phase: str, end: float) -> Any:
        now[0] += self.script[self.job.impl] if command == "seconds" else 0.0
        return ask(self, command, phase, end)

    monkeypatch.setattr(scripted, "ask", later)
    monkeypatch.setattr(compare, "time", SimpleNamespace(monotonic=lambda: now[0]))
    case = replace(SMALL, repeats=9)
    for end, repeats in ((0.0, 2), (9.9, 3), (10.0, 4), (99.0, 9)):
        now[0] = 0.0
        found, _ = compare.compare(case, ("update",), ["trl", "lite-medrl"], end)
        assert [row.repeats for row in found] == [repeats] * 2, end


def test_a_peer_that_fails_is_left_out_and_ours_is_an_error(scripted: type[Scripted]) -> None:
    scripted.script = {"trl": worker.WorkerError("Traceback\nout of memory: 3 GiB"), "lite-medrl": 0.5}
    found, left_out = compare.compare(SMALL, ("update",), ["trl", "lite-medrl"], time.monotonic() + 60)
    assert [row.impl for row in found] == ["lite-medrl"]
    assert left_out == [{"impl": "trl", "shape": "tiny", "why": "update: out of memory: 3 GiB"}]
    scripted.script = {"trl": 2.0, "lite-medrl": worker.WorkerError("killed")}
    with pytest.raises(RuntimeError, match=r"lite-medrl failed:\nkilled"):
        compare.compare(SMALL, ("update",), ["trl", "lite-medrl"], time.monotonic() + 60)
    assert scripted.asked[-2:] == [("trl", "stop"), ("lite-medrl", "stop")]


def test_unsloth_is_named_where_it_is_missing(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = {"trl": 2.0, "lite-medrl": 0.5}
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    found = bench_step(tiny=True, phases=["sft"], device="cpu")
    assert found.left_out == [{"impl": "unsloth", "shape": "any", "why": "it is not installed"}]
    assert "left out: unsloth (any): it is not installed" in found.describe()
    assert [row.phase for row in found.rows] == ["sft", "sft"]


def test_a_process_tells_what_it_died_of(tmp_path: Path) -> None:
    job = Job("trl", ("update",), SMALL, str(tmp_path))
    one = worker.Worker(job)
    try:
        with pytest.raises(worker.WorkerError, match="no time was left"):
            one.ask("look", "update", time.monotonic())
        one.process.kill()
        one.process.join()
        one.log.write_text("what it said last")
        with pytest.raises(worker.WorkerError, match="what it said last"):
            one.ask("look", "update", time.monotonic() + 60)
        assert one.died()
    finally:
        one.stop()
    assert not multiprocessing.active_children()
