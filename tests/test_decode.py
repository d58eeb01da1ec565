"""How answers grow: rows leave, waves follow each other, nothing is left behind, whatever layout is used."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lite_medrl.model import decode as decode_module
from lite_medrl.model import generate as module
from lite_medrl.model import kv_cache
from lite_medrl.model.decode import ragged, regular
from lite_medrl.model.encode import encode_prompts, special_ids
from lite_medrl.model.folded import folded, summed
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.packed import base_of
from lite_medrl.model.stream import stream
from lite_medrl.types import DataError, ModelError, RecipeError

SAMPLING = Sampling(14)


@pytest.fixture(scope="module")
def schooled() -> Any:
    loaded = tiny.loaded()
    return SimpleNamespace(model=tiny.with_lora(loaded.model, scale=0.02), processor=loaded.processor)


@pytest.fixture(scope="module")
def noisy() -> Any:
    """A random model of whose tokens a seventh end the answer: rows leave at all times.

    One thread: how two share a product differs from call to call on a busy machine, by up to 2e-4 here.
    """
    torch.set_num_threads(1)
    processor = tiny.make_processor()
    model = tiny.with_lora(tiny.make_model(processor)).eval()
    model.generation_config.eos_token_id = list(range(0, 384, 7))
    return SimpleNamespace(model=model, processor=processor)


def prompts(processor: Any, count: int = 6) -> dict[str, torch.Tensor]:
    return encode_prompts(processor, tiny.samples("test")[:count], instruction=tiny.INSTRUCTION)


def run(policy: Any, count: int = 6, **options: Any) -> Any:
    common: dict[str, Any] = {"num_generations": 5, "sampling": SAMPLING, "seed": 4}
    return generate(policy.model, policy.processor, prompts(policy.processor, count), **common | options)


def ids(groups: Any) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group] for group in groups]


# --- layouts
# ----------------------------------------------------------------------------------------------------------
class Recorded:
    """Stands for a CUDA graph: under one key, a step must find its buffers where they were."""

    def __init__(self, step: Any, device: torch.device) -> None:
        self.step, self.seen = step, dict[Any, Any]()
        self.batch, self.layouts = step.__self__, []

    def __call__(self, key: Any) -> torch.Tensor:
        batch = self.batch
        layers = [x for layer in batch.cache.layers for x in (*layer.prompt, *layer.own)]
        where = [x.data_ptr() for x in (batch.token_R1, batch.position_R, batch.at_1, *layers)]
        assert self.seen.setdefault(key, where) == where
        rows, cells = len(batch.names), batch.cache.layers[0].cells
        assert rows == batch.prompts * cells.places
        self.layouts.append((rows, cells.places))
        return self.step()


@pytest.mark.parametrize("block", [4, 64])
def test_on_a_card_rows_stay_a_grid_and_buffers_stay_in_place(
    noisy: Any, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The layout for CUDA graphs, on a CPU: the same answers as the other one's."""
    plain, made = run(noisy), []
    monkeypatch.setattr(decode_module, "READ_BLOCK", block)
    monkeypatch.setattr(
        decode_module, "replayed", lambda step, device: made.append(Recorded(step, device)) or made[-1]
    )
    grid = run(noisy)
    assert ids(grid) == ids(plain)
    for a, b in zip((c for g in grid for c in g), (c for g in plain for c in g), strict=True):
        assert a.logps == pytest.approx(b.logps, abs=2e-5)
    assert len(set(made[0].layouts)) > 2  # it shrank more than once


def test_rows_that_ended_leave(noisy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = decode_module.Batch.forward

    def forward(self: Any) -> Any:
        rows.append(len(self.token_R1))
        idle = rows[-1] - len(self.alive)
        assert idle == 0 or 8 * idle < rows[-1] + 8
        return real(self)

    monkeypatch.setattr(decode_module.Batch, "forward", forward)
    groups = run(noisy)
    lengths = [len(c.token_ids) for g in groups for c in g]
    assert sum(rows) < 1.15 * (sum(lengths) - 30) + 30
    assert rows == sorted(rows, reverse=True)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_cells_are_where_rows_come_back_from(sizes: list[int], data: Any) -> None:
    of_prompt = [p for p, size in enumerate(sizes) for _ in range(size)]
    x = torch.arange(1.0, len(of_prompt) + 1)[:, None]
    cells = ragged(of_prompt, len(sizes), torch.device("cpu"))
    grid = cells.to_grid(x)
    assert grid.shape == (len(sizes), max(sizes), 1)
    assert torch.equal(cells.to_rows(grid), x)
    for p, size in enumerate(sizes):
        assert grid[p, :size, 0].tolist() == [i + 1.0 for i, q in enumerate(of_prompt) if q == p]
    alive = sorted(data.draw(st.sets(st.sampled_from(range(len(of_prompt))), min_size=1)))
    full = [p for p in range(len(sizes)) for _ in range(4)]
    alive = [4 * of_prompt[r] + (r - of_prompt.index(of_prompt[r])) for r in alive]
    kept, square = regular(full, alive)
    assert set(alive) <= set(kept)
    assert len(set(kept)) == len(kept) == square.places * len({full[r] for r in alive})
    assert [full[r] for r in kept] == sorted(full[r] for r in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_attention_over_two_parts_is_attention_over_one(dtype: torch.dtype) -> None:
    """Against PyTorch's own, with the prompt's part copied to every row; ragged rows, grouped heads."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    of_prompt = [0, 0, 0, 1, 2, 2]
    cells, owner = ragged(of_prompt, 3, torch.device("cpu")), torch.tensor(of_prompt)
    query, length = noise(6, 6, 1, 8), torch.tensor([7, 4, 1])
    keys, values = (kv_cache.Part(noise(3, 2, 7, 8), noise(6, 2, 5, 8), cells) for _ in range(2))
    there = torch.cat([torch.arange(7) < length[owner][:, None], (torch.arange(5) <= 2).expand(6, -1)], 1)
    mask = torch.zeros(there.shape).masked_fill(~there, -torch.inf)[:, None, None]
    found, _ = kv_cache.attend(None, query, keys, values, mask, scaling=0.3)
    whole = [torch.cat([part.prompt_PHLW[owner], part.own_RHTW], 2) for part in (keys, values)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), *(x.double() for x in whole), attn_mask=mask.double(), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


def test_a_greedy_first_answer_stays_greedy_when_rows_have_left(noisy: Any) -> None:
    plain, mixed = run(noisy), run(noisy, greedy_first=True)
    greedy = run(noisy, num_generations=1, sampling=Sampling(14, temperature=0.0))
    assert [g[0] for g in ids(mixed)] == [g[0] for g in ids(greedy)]
    assert [g[1:] for g in ids(mixed)] == [g[1:] for g in ids(plain)]
    assert len({len(c.token_ids) for g in mixed for c in g}) > 4  # rows left at all times
    assert max(len(g[0].token_ids) for g in mixed) > 4


# --- waves
# ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokens", [3000, 400, 150, 90])
def test_waves_do_not_change_the_answers(noisy: Any, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """From all at once to a few answers of one prompt at a time."""
    whole, passes = run(noisy), []
    real = module.prefill
    monkeypatch.setattr(module, "prefill", lambda *a: passes.append(1) or real(*a))
    per_token = module.bytes_per_token(base_of(noisy.model).config, torch.float32)
    assert per_token == 2 * 2 * 2 * 16 * 4
    split = run(noisy, max_cache_gib=tokens * per_token / 2**30)
    assert ids(split) == ids(whole)
    assert len(passes) == {3000: 1, 400: 2, 150: 6, 90: 6}[tokens]


class Replay:
    """A CUDA graph's stand-in without a look at anything."""

    def __init__(self, step: Any, device: torch.device) -> None:
        self.step = step

    def __call__(self, key: Any) -> torch.Tensor:
        return self.step()


def cached_bytes() -> int:
    """Of all keys and values that are held anywhere in the process (two heads of width 16)."""
    shaped = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim == 4]
    caches = {x.untyped_storage() for x in shaped if x.shape[1] == 2 and x.shape[3] == 16}
    return sum({s.data_ptr(): s.nbytes() for s in caches}.values())


@pytest.mark.parametrize("tokens", [700, 330])
@pytest.mark.parametrize("card", [False, True], ids=["cpu", "card"])
def test_what_is_counted_in_advance_is_what_is_held(
    noisy: Any, monkeypatch: pytest.MonkeyPatch, card: bool, tokens: int
) -> None:
    """When a wave begins, and whenever rows have left it; nothing waits for Python's garbage collection."""
    held: list[int] = []
    counted: list[int] = []
    real, shrink, planned = decode_module.Batch.__init__, decode_module.Batch.shrink, module.waves

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        held.append(cached_bytes())

    def shrunk(self: Any) -> Any:
        kept = shrink(self)
        held.append(cached_bytes())
        return kept

    def waves(length_P: Any, answers: int, length: int, **options: Any) -> Any:
        found = planned(length_P, answers, length, **options)
        sizes = [(len(w.prompts), max(length_P[p] for p in w.prompts), w.answers) for w in found]
        counted.append(max(count * (longest + many * length) for count, longest, many in sizes))
        return found

    monkeypatch.setattr(module, "waves", waves)
    monkeypatch.setattr(decode_module.Batch, "__init__", init)
    monkeypatch.setattr(decode_module.Batch, "shrink", shrunk)
    if card:
        monkeypatch.setattr(decode_module, "replayed", Replay)
    per_token = module.bytes_per_token(base_of(noisy.model).config, torch.float32)
    gc.disable()
    gc.freeze()  # so that only what is new is looked through
    try:
        run(noisy, max_cache_gib=tokens * per_token / 2**30)
    finally:
        gc.unfreeze()
        gc.enable()
    assert len(held) > 10
    assert counted[0] <= tokens
    assert 0.8 * counted[0] * per_token < max(held) <= counted[0] * per_token


def test_nothing_is_held_after_a_call(noisy: Any) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    run(noisy, 2)
    before = tensors()
    for seed in range(20):
        run(noisy, 2, seed=seed)
    assert tensors() == before


# --- what can be wrong
# ------------------------------------------------------------------------------------------------
@pytest.fixture
def no_forward(schooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a check comes after the first forward pass."""

    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass ran")

    monkeypatch.setattr(base_of(schooled.model).model, "forward", forward)


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("generator", ["grouped", "hf"])
def test_bad_input_is_refused_before_the_first_forward_pass(schooled: Any, generator: Any) -> None:
    text = base_of(schooled.model).config.text_config
    common = {"generator": generator}
    with pytest.raises(RecipeError, match="num_generations=0: must be 1 or more"):
        run(schooled, num_generations=0, **common)
    with pytest.raises(RecipeError, match="top_p=2"):
        run(schooled, sampling=Sampling(4, top_p=2.0), **common)
    with pytest.raises(RecipeError, match=r"stop: an empty string"):
        run(schooled, sampling=Sampling(4, stop=("",)), **common)
    before, text.max_position_embeddings = text.max_position_embeddings, 20
    try:
        with pytest.raises(DataError, match=r"prompt 0 has \d\d tokens, but the model's context holds 20"):
            run(schooled, **common)
    finally:
        text.max_position_embeddings = before
    inputs = prompts(schooled.processor)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padded on the right"):
        generate(schooled.model, schooled.processor, inputs, num_generations=1, sampling=SAMPLING, **common)


@pytest.mark.usefixtures("no_forward")
def test_without_free_memory_the_error_says_how_much_is_missing(
    schooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"prompt 0 \(\d+ tokens\) with one answer of 14 takes .* but 0 GiB"):
        run(schooled, max_cache_gib=0.0)
    monkeypatch.setattr(module, "free_bytes", lambda device: 0)
    with pytest.raises(ModelError, match="no room for answers"):
        run(schooled)
    with pytest.raises(ModelError, match=r"generate holds 30 rows of \d+ tokens at once, .* but 0 GiB"):
        run(schooled, generator="hf")
    per_token = module.bytes_per_token(base_of(schooled.model).config, torch.float32)
    held = 30 * (prompts(schooled.processor)["input_ids"].shape[1] + 14) * per_token
    for budget, error in ((held - 512, ModelError), (held + 512, AssertionError)):  # the forward pass runs
        with pytest.raises(error):
            run(schooled, generator="hf", max_cache_gib=budget / 2**30)


def test_a_tokenizer_that_cannot_write_a_stop_string_is_named(schooled: Any) -> None:
    from lite_medrl.model.stops import make_stops

    lossy = SimpleNamespace(encode=lambda text, **_: [0], decode=lambda ids, **_: "<unk>")
    with pytest.raises(RecipeError, match="tokenizer cannot write 'é'"):
        make_stops(lossy, [1], ["é"])
    silent = SimpleNamespace(encode=lambda text, **_: [], decode=lambda ids, **_: "")
    with pytest.raises(RecipeError, match="cannot write 'x'"):
        make_stops(silent, [1], ["x"])


@pytest.mark.parametrize("generator", ["grouped", "hf"])
def test_the_context_ends_an_answer(schooled: Any, generator: Any) -> None:
    inputs, text = prompts(schooled.processor, 2), base_of(schooled.model).config.text_config
    lengths = inputs["attention_mask"].sum(1).tolist()
    before, text.max_position_embeddings = text.max_position_embeddings, max(lengths) + 3
    try:
        groups = run(schooled, 2, generator=generator)
    finally:
        text.max_position_embeddings = before
    for length, group in zip(lengths, groups, strict=True):
        room = max(lengths) + 3 - length
        assert {c.finish_reason for c in group if len(c.token_ids) == room} <= {"length", "stop"}
        assert max(len(c.token_ids) for c in group) <= room
    assert {len(c.token_ids) for c in groups[lengths.index(max(lengths))]} == {3}


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_ctrl_c_leaves_the_model_usable(schooled: Any, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """During the prefill, and during the first and a later step."""
    expected, base = run(schooled), base_of(schooled.model)
    state = {name: value.clone() for name, value in schooled.model.state_dict().items()}
    attention, calls, real = base.config.text_config._attn_implementation, [], base.model.forward
    schooled.model.train()

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > moment:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(base.model, "forward", forward)
        with pytest.raises(KeyboardInterrupt):
            run(schooled)
    assert schooled.model.training
    assert base.config.text_config._attn_implementation == attention
    assert not any("forward" in m.__dict__ for m in schooled.model.modules() if isinstance(m, LoraLayer))
    assert all(torch.equal(value, state[name]) for name, value in schooled.model.state_dict().items())
    schooled.model.eval()
    assert run(schooled) == expected


class Cut:
    """Steps of a rollout between two of which Ctrl-C arrives, in the frame of whoever walks through them."""

    def __init__(self, steps: Any) -> None:
        self.steps, self.taken, self.close = steps, 0, steps.close

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if self.taken == 3:
            raise KeyboardInterrupt
        self.taken += 1
        return next(self.steps)


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_ctrl_c_between_steps_does_so_too_though_the_traceback_is_kept(
    schooled: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """As notebooks keep it; in `stream` it arrives while the text is put together."""
    inputs, base = prompts(schooled.processor, 1), base_of(schooled.model)
    expected, attention = run(schooled, 1), base.config.text_config._attn_implementation
    with torch.no_grad():
        logits = schooled.model(**inputs).logits

    def interrupted(rows: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    def cut(*args: Any) -> module.Rollout:
        rollout = real(*args)
        return module.Rollout(rollout.answers, cast(Any, Cut(rollout.steps)))

    real, tokenizer = module.start, schooled.processor.tokenizer
    ask = {
        "generate": lambda: run(schooled, 1),
        "stream": lambda: list(stream(schooled.model, schooled.processor, inputs, sampling=SAMPLING)),
    }[way]
    with monkeypatch.context() as patch:
        patch.setattr(
            *{"generate": (module, "start", cut), "stream": (tokenizer, "batch_decode", interrupted)}[way]
        )
        with pytest.raises(KeyboardInterrupt) as kept:
            ask()
    assert kept.tb is not None
    assert base.config.text_config._attn_implementation == attention
    assert not any("forward" in m.__dict__ for m in schooled.model.modules() if isinstance(m, LoraLayer))
    with torch.no_grad():
        assert torch.equal(schooled.model(**inputs).logits, logits)
    assert run(schooled, 1) == expected


def test_a_model_that_computes_nan_is_not_sampled_from(noisy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_module.head_logits
    monkeypatch.setattr(decode_module, "head_logits", lambda *a: real(*a) * torch.nan)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        run(noisy)


# --- live adapters
# ----------------------------------------------------------------------------------------------------
def test_folded_layers_answer_as_the_adapter_does_and_nothing_is_merged(schooled: Any) -> None:
    model, inputs = schooled.model, prompts(schooled.processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model(**inputs).logits
        with folded(model):
            layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
            assert layers
            assert all("forward" in m.__dict__ for m in layers)
            once = model(**inputs).logits
        again = model(**inputs).logits
        with model.disable_adapter():
            bare = model(**inputs).logits
            with folded(model):
                folded_bare = model(**inputs).logits
    torch.testing.assert_close(once, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded_bare, bare, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, plain)
    assert float((bare - plain).abs().max()) > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_folded_exactly_is_left_alone(schooled: Any) -> None:
    layer: Any = next(m for m in schooled.model.modules() if isinstance(m, LoraLayer))
    assert summed(layer) is not None
    layer.train()
    assert summed(layer) is None  # dropout may be on
    layer.eval()
    layer.lora_variant["default"] = object()
    try:
        assert summed(layer) is None
    finally:
        del layer.lora_variant["default"]
    assert summed(torch.nn.Linear(2, 2)) is None


def test_the_answers_change_with_the_adapters_next_update(schooled: Any) -> None:
    first = run(schooled, 2)
    parameter = next(p for name, p in schooled.model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        parameter.add_(0.3)
        changed = run(schooled, 2)
        parameter.sub_(0.3)
    assert changed[0][0].logps != first[0][0].logps


# --- statistics
# -------------------------------------------------------------------------------------------------------
def transformers_distribution(policy: Any, inputs: Any, options: dict[str, Any]) -> torch.Tensor:
    """Probabilities [V] of the first token: a whole forward pass, and transformers' own processors."""
    processors = [
        RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)),
        SuppressTokensLogitsProcessor(special_ids(policy.processor, policy.model)),
        TemperatureLogitsWarper(options["temperature"]),
    ]
    processors += [TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    processors += [TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    processors += [MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    with torch.no_grad():
        logits = policy.model(**inputs).logits[:, -1]
    return LogitsProcessorList(processors)(inputs["input_ids"], logits)[0].double().softmax(-1)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 4}, {"temperature": 1.3, "top_p": 0.8},
     {"temperature": 1.2, "min_p": 0.1}, {"temperature": 1.0, "repetition_penalty": 1.5},
     {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}],
    ids=str,
)  # fmt: skip
def test_tokens_follow_the_distribution_asked_for(noisy: Any, options: dict[str, Any]) -> None:
    """The first token of thousands of answers; each likely token is a cell, the others are one together."""
    inputs, count = prompts(noisy.processor, 1), 6000
    sampling = Sampling(1, **options)
    (group,) = generate(noisy.model, noisy.processor, inputs, num_generations=count, sampling=sampling)
    seen_V = np.bincount([c.token_ids[0] for c in group], minlength=384)
    wanted_V = count * transformers_distribution(noisy, inputs, options).numpy()
    assert not seen_V[wanted_V == 0].any()
    likely = wanted_V >= 5
    seen, wanted = list(seen_V[likely]), list(wanted_V[likely])
    if wanted_V[~likely].sum() >= 5:
        seen, wanted = [*seen, seen_V[~likely].sum()], [*wanted, wanted_V[~likely].sum()]
    assert len(seen) > 3
    scale = sum(seen) / sum(wanted)
    assert chisquare(seen, [w * scale for w in wanted]).pvalue > 1e-3
