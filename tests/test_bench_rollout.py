"""The rollout benchmark: rows for every generator, honest counts, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lite_medrl import cli
from lite_medrl.model.load import Policy, lora_targets
from lite_medrl.tools.bench import rollout, rollout_models, rollout_rivals
from lite_medrl.tools.bench.rollout import copy_bandwidth, describe, run_rollout, step_bytes
from lite_medrl.tools.bench.rollout_models import SHAPES, make_subject, weight_bytes
from lite_medrl.tools.bench.rollout_rivals import LeftOut, rival
from lite_medrl.types import RecipeError


def ask(**options: Any) -> dict[str, Any]:
    common = {"model": "qwen3-vl-tiny", "prompt_tokens": 40, "new_tokens": 5, "repeats": 1}
    return run_rollout(SimpleNamespace(**common | options))


def test_a_row_for_each_generator_and_number_of_sequences(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows.csv"
    result = ask(output=out, sequences="1,64")
    rows = result["rows"]
    assert [(r["impl"], r["sequences"]) for r in rows] == [
        (impl, n) for impl in ("grouped", "hf", "hf-static") for n in (1, 64)
    ]
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["sequences"] * 5 / row["total_s"])
        assert row["ttft_s"] > 0
        assert row["roofline_frac"] > 0
        assert 0.05 < row["peak_gib"] < 50
        assert row["prompt_tokens"] == 40
    ask(output=out, sequences="1", impls="hf")
    stored = list(csv.DictReader(out.open()))
    assert len(stored) == 7
    assert stored[0]["model"] == "qwen3-vl-tiny (random weights)"
    assert stored[6]["impl"] == "hf"
    assert stored[0]["device"] == "cpu"
    assert stored[0]["commit"]
    for row in rows:
        (theirs,) = [r for r in rows if r["impl"] == "hf" and r["sequences"] == row["sequences"]]
        assert row["times_hf"] == pytest.approx(row["tokens_per_s"] / theirs["tokens_per_s"])
    assert describe(rows).count("\n") == 8


def test_who_runs_out_of_memory_loses_that_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a generator is made, and while it draws; another error still leaves the rows that are there."""
    real, out = rollout.rival, tmp_path / "rows.csv"

    def poor(name: str, subject: Any) -> Any:
        if name == "hf-static":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")
        draw = real(name, subject)

        def drawn(prompts: int, answers: int, length: int) -> Any:
            if name == "hf" and prompts > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return draw(prompts, answers, length)

        return drawn

    monkeypatch.setattr(rollout, "rival", poor)
    rows = ask(sequences="1,64", output=out)["rows"]
    assert [(r["impl"], r["sequences"]) for r in rows] == [("grouped", 1), ("grouped", 64), ("hf", 1)]
    assert "hf with 64 sequences: left out, CUDA out of memory. Tried to allocate 2 GiB" in caplog.text
    assert "hf-static: left out, CUDA out of memory. Tried to allocate 9 GiB" in caplog.text
    assert [r["times_hf"] for r in rows[1:]] == [None, 1.0]
    assert len(list(csv.DictReader(out.open()))) == 3
    monkeypatch.setattr(rollout, "rival", lambda name, s: 1 / 0 if name == "hf" else real(name, s))
    names = [row["impl"] for row in ask(sequences="1", output=out)["rows"]]
    assert "hf" not in names
    assert "grouped" in names
    assert "hf: left out, division by zero" in caplog.text
    monkeypatch.setattr(rollout, "rival", lambda name, s: 1 / 0 if name == "grouped" else real(name, s))
    before = len(list(csv.DictReader(out.open())))
    with pytest.raises(ZeroDivisionError):
        ask(sequences="1", impls="hf,grouped", output=out)
    assert len(list(csv.DictReader(out.open()))) == before + 1  # the row of hf was there already
    monkeypatch.setattr(rollout, "rival", real)
    assert ask(sequences="1", impls="grouped,hf", minutes=1e-9) == {"rows": []}
    assert "grouped with 1 sequences: left out, the time is up" in caplog.text


def test_tiny_takes_two_timed_calls_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three took 51 s on a busy machine, and 50 are there."""
    seen: list[int] = []
    monkeypatch.setattr(rollout, "rows_of", lambda *a: seen.append(a[4]) or [])
    for options in ({"tiny": True, "repeats": None}, {"repeats": None}, {"tiny": True, "repeats": 5}):
        ask(impls="grouped", **options)
    assert seen == [2, 3, 5]


def test_the_goals_are_judged_on_a_card_alone() -> None:
    row = {"impl": "grouped", "sequences": 64, "tokens_per_s": 600.0, "ttft_s": 0.1, "peak_gib": 1.0}
    other = row | {"impl": "hf", "tokens_per_s": 100.0, "roofline_frac": 0.1}
    card = {"device": "a card"}
    assert rollout.times_hf(row, [other]) == 6.0
    assert rollout.times_hf(other, []) == 1.0
    assert rollout.times_hf(row | {"sequences": 8}, [other]) is None
    text = describe([row | card | {"roofline_frac": 0.49, "times_hf": 6.0}, other | card])
    assert "64 sequences: 6.00 x hf (goal: 5.00 x hf, reached)" in text
    assert "64 sequences: 49% of the roofline (goal: 50% of the roofline, not reached)" in text
    on_cpu = describe([row | {"device": "cpu", "roofline_frac": 0.1, "times_hf": 6.0}, other])
    assert "64 sequences: 6.00 x hf (goal: 5.00 x hf, a card's)" in on_cpu
    alone = describe([row | card | {"roofline_frac": 0.6, "times_hf": None}])
    assert "64 sequences: not measured (goal: 5.00 x hf)" in alone


def test_random_weights_are_made_in_the_dtype_they_are_kept_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4B model in fp32 first would take 16.5 GiB of the card; rotary frequencies stay in fp32."""
    made: list[torch.dtype] = []
    real = torch.nn.Linear.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        made.append(self.weight.dtype)

    half = Policy("cpu", torch.bfloat16, "test")
    monkeypatch.setattr(rollout_models, "policy_for_machine", lambda: half)
    monkeypatch.setattr(rollout_models, "quantise", lambda model, dtype: None)
    monkeypatch.setattr(torch.nn.Linear, "__init__", init)
    subject = rollout_models.random_subject("qwen3-vl-tiny", 1, 40)
    assert set(made) == {torch.bfloat16}
    assert {p.dtype for p in subject.model.parameters()} == {torch.bfloat16}
    frequencies = [b for name, b in subject.model.named_buffers() if "inv_freq" in name]
    assert {b.dtype for b in frequencies} == {torch.float32}


def test_all_draw_answers_of_full_length_from_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("qwen3-vl-tiny", prompts=8, prompt_tokens=40)
    ours = rival("grouped", subject)(8, 8, 6)
    assert {len(c.token_ids) for group in ours for c in group} == {6}
    for name in ("hf", "hf-static"):
        assert rival(name, subject)(2, 3, 6).shape == (6, 46)
    few = subject.first(2)
    assert torch.equal(few["input_ids"], subject.inputs["input_ids"][:2])
    assert len(few["pixel_values"]) == 2 * int(few["image_grid_thw"][0].prod())


def test_the_embedded_model_is_measured_on_real_questions() -> None:
    subject = make_subject("embedded", prompts=2, prompt_tokens=0)
    assert len(subject.first(1)["pixel_values"]) == 1
    ((completion,),) = rival("grouped", subject)(1, 1, 30)
    assert len(completion.token_ids) == 30  # it would have ended before


def test_what_a_step_reads_is_counted() -> None:
    subject = make_subject("qwen3-vl-tiny", prompts=8, prompt_tokens=40, rank=4)
    text = SHAPES["qwen3-vl-tiny"]["text"]
    hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    kv = text["num_key_value_heads"] * text["head_dim"]
    products = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    lora = 4 * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner))
    norms = 2 * hidden + 2 * text["head_dim"]
    head = hidden * text["vocab_size"]
    assert weight_bytes(subject.model) == 4 * (layers * (products + lora + norms) + hidden + head)
    per_token = 2 * layers * kv * 4
    expected = weight_bytes(subject.model) + per_token * (8 * 40 + 64 * 3)
    assert step_bytes(subject, 8, 64, 6) == expected  # each prompt once, answers half grown


def test_random_weights_are_in_nf4_and_close_to_what_they_were() -> None:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    model = rollout_models.qwen3_vl(SHAPES["qwen3-vl-tiny"]).eval()
    plain = {name: model.get_submodule(name).weight.clone() for name in lora_targets(model)}
    rollout_models.quantise(model, torch.float32)
    for name, weight in plain.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear4bit)
        assert layer.weight.quant_state.nested
        shown = layer(torch.eye(weight.shape[1])).T
        error = float((shown - weight).norm() / weight.norm())
        assert 0.01 < error < 0.15


def test_who_is_not_here_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = SimpleNamespace(path=None)
    with pytest.raises(LeftOut, match="vllm is not installed"):
        rival("vllm", subject)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(rollout_rivals, "find_spec", lambda name: object())
    with pytest.raises(LeftOut, match="unsloth loads a model by itself; give a folder or a hub id"):
        rival("unsloth", subject)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"impls": "ours"}, "'ours' is not one of grouped"), ({"sequences": "2"}, "2 is not one of 1, 8, 64"),
     ({"sequences": "many"}, "'many' is not one of 1, 8, 64"), ({"prompt_tokens": 3}, "--prompt-tokens 3")],
    ids=str,
)  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ask(**options)


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < copy_bandwidth(torch.device("cpu")) < 1e13


def test_the_command_prints_rows_as_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    row = {"impl": "hf", "sequences": 1, "tokens_per_s": 2.0, "ttft_s": 0.1, "peak_gib": None}
    row |= {"roofline_frac": None}
    monkeypatch.setattr(rollout, "run_rollout", lambda args: seen.append(args) or {"rows": [row]})
    assert cli.main(["bench", "rollout", "--tiny", "--json", "--sequences", "1,8"]) == 0
    assert json.loads(capfd.readouterr().out) == {"rows": [row]}
    assert (seen[0].tiny, seen[0].sequences, seen[0].model) == (True, "1,8", None)
    assert cli.main(["bench", "rollout"]) == 0
    assert "hf " in capfd.readouterr().out
