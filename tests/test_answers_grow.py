"""Stop strings, streaming, options scored without sampling, and adapters that take turns."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_medrl.model.adapters import answering_as
from lite_medrl.model.choices import option_logps, probabilities
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.stops import Growing, Stops, make_stops
from lite_medrl.model.stream import stream
from lite_medrl.types import DataError, ModelError

GREEDY = Sampling(30, temperature=0.0)


@pytest.fixture(scope="module")
def schooled() -> Any:
    loaded = tiny.loaded()
    return SimpleNamespace(model=tiny.with_lora(loaded.model, scale=0.02), processor=loaded.processor)


def prompts(processor: Any, count: int = 3) -> dict[str, torch.Tensor]:
    return encode_prompts(processor, tiny.samples("test")[:count], instruction=tiny.INSTRUCTION)


# --- stops
# ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("generator", ["grouped", "hf"])
def test_a_stop_string_ends_the_answer_and_stays_in_it(schooled: Any, generator: Any) -> None:
    def run(*stop: str) -> list[Any]:
        groups = generate(
            schooled.model, schooled.processor, prompts(schooled.processor), num_generations=1,
            sampling=Sampling(30, temperature=0.0, stop=stop), generator=generator,
        )  # fmt: skip
        return [group[0] for group in groups]

    for whole, cut in zip(run(), run("nothing like it", "ink><ans"), strict=True):
        assert "</think><answer>" in whole.text
        assert cut.finish_reason == "stop"
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert "ink><ans" in cut.text
        assert len(cut.token_ids) == len(cut.logps) == len(cut.sampling_logps)
        decode = schooled.processor.tokenizer.decode
        assert "ink><ans" not in decode(cut.token_ids[:-1])


@given(st.text("abé🙂", min_size=1, max_size=12), st.text("abé🙂", min_size=1, max_size=3))
def test_a_string_is_found_the_moment_it_is_complete(text: str, stop: str) -> None:
    """A byte a token, the worst case for the window that is looked at."""
    tokenizer = SimpleNamespace(
        encode=lambda text, **_: list(text.encode()),
        decode=lambda ids, **_: bytes(ids).decode(errors="replace"),
    )
    growing = Growing(make_stops(tokenizer, [], [stop]), 1000)
    for byte in text.encode():
        if not growing.add(byte, 0.0, 0.0):
            break
    if stop in text:
        expected = text[: text.index(stop) + len(stop)].encode()
        assert (growing.stopped, bytes(growing.tokens)) == (True, expected)
    else:
        assert (growing.stopped, bytes(growing.tokens)) == (False, text.encode())


def test_the_limit_ends_an_answer_and_a_stop_token_at_the_limit_still_counts() -> None:
    short = Growing(Stops(frozenset([9])), 2)
    assert [short.add(1, -1.0, -2.0), short.add(3, -0.5, -0.7)] == [True, False]
    assert (short.stopped, short.sampling_logps, short.logps) == (False, [-1.0, -0.5], [-2.0, -0.7])
    exact = Growing(Stops(frozenset([9])), 2)
    assert [exact.add(1, 0.0, 0.0), exact.add(9, 0.0, 0.0)] == [True, False]
    assert exact.stopped
    assert exact.text_tokens == [1]


# --- streaming
# ------------------------------------------------------------------------------------------------------
def test_a_streamed_answer_grows_into_the_generated_one(schooled: Any) -> None:
    inputs = prompts(schooled.processor, 1)
    for sampling in (GREEDY, Sampling(20, 1.0)):
        ((whole,),) = generate(
            schooled.model, schooled.processor, inputs, num_generations=1, sampling=sampling, seed=3
        )
        parts = list(stream(schooled.model, schooled.processor, inputs, sampling=sampling, seed=3))
        assert parts[-1] == whole.text
        assert len(parts) == len(whole.token_ids)
        assert all(later.startswith(sooner) for sooner, later in pairwise(parts))


def test_who_stops_listening_leaves_the_model_as_it_was(schooled: Any) -> None:
    inputs = prompts(schooled.processor, 1)
    schooled.model.train()
    listening = stream(schooled.model, schooled.processor, inputs, sampling=GREEDY)
    next(listening)
    assert not schooled.model.training
    assert torch.is_grad_enabled()  # between tokens, the listener's own work is as ever
    listening.close()
    assert schooled.model.training
    assert torch.is_grad_enabled()
    schooled.model.eval()


# --- options
# --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "how", [{}, {"ended": True}, {"before": "<answer> ", "after": " </answer>"}], ids=str
)
def test_options_score_what_whole_forward_passes_say(schooled: Any, how: dict[str, Any]) -> None:
    inputs, tokenizer = prompts(schooled.processor), schooled.processor.tokenizer
    options = [["red", "a green one"], ["blue"], ["grey", "red", "green"]]
    found = option_logps(schooled.model, schooled.processor, inputs, options, **how)
    mean = option_logps(schooled.model, schooled.processor, inputs, options, per_token=True, **how)
    assert [len(row) for row in found] == [2, 1, 3]
    for p, row in enumerate(options):
        keep = inputs["attention_mask"][p].bool()
        prompt = inputs["input_ids"][p][keep].tolist()
        given = tokenizer.encode(how.get("before", ""), add_special_tokens=False)
        for option, value, per_token in zip(row, found[p], mean[p], strict=True):
            tokens = tokenizer.encode(option + how.get("after", ""), add_special_tokens=False)
            tokens += [tokenizer.eos_token_id] if how.get("ended") else []
            ids = torch.tensor([[*prompt, *given, *tokens]])
            with torch.no_grad():
                logits = schooled.model(input_ids=ids, pixel_values=inputs["pixel_values"][p : p + 1]).logits
            logp = logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
            expected = logp.gather(1, torch.tensor(tokens)[:, None]).sum()
            assert value == pytest.approx(float(expected), abs=1e-4)
            assert per_token == pytest.approx(float(expected) / len(tokens), abs=1e-4)


def test_probabilities_of_options_add_up() -> None:
    assert probabilities([-1.0, -1.0]) == [0.5, 0.5]
    assert probabilities([-900.0, -902.0])[0] == pytest.approx(0.8807970779778823)


def test_options_that_cannot_be_scored_are_named(schooled: Any) -> None:
    inputs = prompts(schooled.processor, 2)
    with pytest.raises(DataError, match="prompt 1 has no options"):
        option_logps(schooled.model, schooled.processor, inputs, [["a"], []])
    with pytest.raises(DataError, match="prompt 0: option '' has no token"):
        option_logps(schooled.model, schooled.processor, inputs, [["a", ""], ["b"]])


# --- adapters
# -------------------------------------------------------------------------------------------------------
@pytest.fixture
def several() -> Any:
    """A model with two adapters that differ; the first is being trained."""
    processor = tiny.make_processor()
    model = tiny.with_lora(tiny.make_model(processor)).eval()
    model.add_adapter("other", model.peft_config["default"])
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return SimpleNamespace(model=model, processor=processor)


def answers(policy: Any) -> Any:
    inputs = prompts(policy.processor, 2)
    return generate(policy.model, policy.processor, inputs, num_generations=2, sampling=Sampling(8))


def test_each_name_answers_for_itself_and_training_goes_on_as_before(several: Any) -> None:
    model = several.model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    first, found = answers(several), {}
    for name in ("base", "default", "other", "base"):
        with answering_as(model, name):
            found[name] = answers(several)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        assert model.active_adapters == ["default"]
        assert answers(several) == first
    assert found["default"] == first
    assert len({str(x) for x in found.values()}) == 3
    with (
        pytest.raises(ModelError, match="no adapter 'third'; this model has base, default, other"),
        answering_as(model, "third"),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), answering_as(model, "other"):
        raise KeyboardInterrupt
    assert answers(several) == first


def test_a_plain_model_is_its_own_base(several: Any) -> None:
    base = several.model.get_base_model()
    with answering_as(base) as model:
        assert model is base
    with pytest.raises(ModelError, match="no adapter 'sft'; this model has base"), answering_as(base, "sft"):
        pass


def test_threads_wait_for_each_other(several: Any) -> None:
    inside = threading.Event()

    def other() -> None:
        with answering_as(several.model, "other"):
            inside.set()

    with answering_as(several.model):
        thread = threading.Thread(target=other)
        thread.start()
        assert not inside.wait(0.2)
    thread.join(5)
    assert inside.is_set()
