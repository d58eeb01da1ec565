"""Packed rows of every family against one stock forward pass per completion, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny_vlms import (
    FAMILIES,
    IMAGE,
    Case,
    batch,
    grads,
    image_tokens,
    logp,
    make_case,
    make_images,
    plain,
    rotate_in_fp64,
)

from lite_medrl.model import packed
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.pack_check import separate_states
from lite_medrl.model.packed import packed_states, plan, plan_labelled
from lite_medrl.model.prefix_tree import Chain, Question, Root, prefix_trees


def assert_equal(case: Case, logp_N: torch.Tensor, expected_N: torch.Tensor, wanted: dict[str, Any]) -> None:
    torch.testing.assert_close(logp_N, expected_N, rtol=0, atol=1e-10)
    for name, grad in grads(case, logp_N).items():
        torch.testing.assert_close(
            grad, wanted[name], rtol=0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    rotate_in_fp64(monkeypatch)
    return make_case(request.param)


def test_packed_rows_are_separate_rows(case: Case) -> None:
    """Log-probs and every LoRA gradient, rows one by one and side by side, merged or not."""
    expected = plain(case)
    wanted = grads(case, expected)
    assert len(wanted) == 3 * 7 * 2
    assert all(float(g.abs().max()) > 1e-4 for g in wanted.values())
    for merge, tokens_per_pass in ((False, 0), (True, 10**6)):
        trees = case.trees(merge=merge)
        assert len(trees) == 2
        states = packed_states(case.model, trees, case.images, tokens_per_pass=tokens_per_pass)
        assert states.completion_N.tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
        assert len(states.hidden_SD) == sum(len(set(tree.source_N)) for tree in trees)
        assert_equal(case, logp(case, states), expected, wanted)


def test_divided_trees_and_separate_states(case: Case) -> None:
    """A small budget repeats the image; `separate_states` is what transformers computes by itself."""
    expected = plain(case)
    wanted = grads(case, expected)
    trees = case.trees(
        max_tokens=max(
            len(root.tokens) + len(question.tokens) + len(chain.fed)
            for root in case.roots
            for question in root.questions
            for chain in question.chains
        )
    )
    assert len(trees) > 2
    states = packed_states(case.model, trees, case.images, tokens_per_pass=10**6)
    assert_equal(case, logp(case, states), expected, wanted)
    assert_equal(case, logp(case, separate_states(case.model, trees, case.images)), expected, wanted)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl"])
def test_gradient_checkpointing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate_in_fp64(monkeypatch)
    case = make_case(family)
    expected = plain(case)
    wanted = grads(case, expected)
    base, runs = case.model.get_base_model(), []
    base.gradient_checkpointing_enable({"use_reentrant": False})
    case.model.enable_input_require_grads()
    case.model.train()
    layer = packed.base_of(case.model).model.language_model.layers[1].mlp
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    found = logp(case, packed_states(case.model, case.trees(), case.images))
    assert_equal(case, found, expected, wanted)
    assert len(runs) == 4  # two rows, each computed again in the backward pass


def test_an_image_is_encoded_once_for_its_row() -> None:
    case, seen = make_case("llava"), []
    tower = case.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    packed_states(case.model, case.trees(), case.images)
    assert seen == [1, 2]  # four completions share the first image, two the second and third


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_plan_from_a_batch_of_prompts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts 0 and 2 show the same image; completions come in any order, and so do their log-probs."""
    rotate_in_fp64(monkeypatch)
    case = make_case(family)
    one, two = case.images
    first, second = (root.tokens for root in case.roots)
    prompts = [[*first, 20, 21], list(second), [*first, 22]]
    inputs = batch(case, prompts, [one, two, one])
    chains = [chain for root in case.roots for question in root.questions for chain in question.chains]
    completions = [chain.tokens for chain in sorted(chains, key=lambda chain: chain.completion)]
    made = plan(case.model.config, inputs, completions, [0, 1, 0, 2, 0, 1], max_tokens=100)
    assert [tree.token_T[: tree.root_tokens] for tree in made.trees] == [first, second]
    assert [len(tree.token_T) for tree in made.trees] == [len(tree.token_T) for tree in case.trees()]
    found = logp(case, packed_states(case.model, made.trees, made.images))
    torch.testing.assert_close(found, plain(case), rtol=0, atol=1e-10)
    inputs = batch(case, prompts, [one, two, make_images(family, [1])])
    other = plan(case.model.config, inputs, completions, [0, 1, 0, 2, 0, 1], max_tokens=100)
    assert len(other.trees) == 3  # another image, so another root


def test_a_question_before_the_image_shares_nothing() -> None:
    case = make_case("llava")
    image = image_tokens("llava", 0)
    inputs = batch(case, [[20, *image], [21, *image]], [case.images[0]] * 2)
    made = plan(case.model.config, inputs, [[30, 31], [32]], [0, 1], max_tokens=50)
    assert [tree.token_T for tree in made.trees] == [(20, *image, 30), (21, *image)]
    assert len(made.images) == 2


def test_prompts_without_images_and_trained_parts() -> None:
    case = make_case("llava")
    inputs = {
        "input_ids": torch.tensor([[0, 1, 2], [1, 2, 3]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    trained = [[True, False, False], [True, True]]
    made = plan(case.model.config, inputs, [[4, 5, 6], [7, 8]], [0, 1], max_tokens=9, trained_B=trained)
    assert [tree.token_T for tree in made.trees] == [(1, 2), (1, 2, 3, 7)]
    found = logp(case, packed_states(case.model, made.trees, made.images, tokens_per_pass=99))
    ids = torch.tensor([[1, 2, 3, 7, 8]])
    expected = case.model(input_ids=ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(found[1:], expected[[2, 3], [7, 8]], rtol=0, atol=1e-10)


def test_labelled_rows_share_their_image() -> None:
    """Supervised rows of one image, padded on the right; log-probs come in the order of the labels."""
    case = make_case("llava")
    image = image_tokens("llava", 0)
    rows = [[*image, 20, 30, 31, 32], [*image, 21, 33, 34], [*image, 20, 35, 0, 0]]
    inputs = {
        "input_ids": torch.tensor([[*row, *[0] * (10 - len(row))] for row in rows]),
        "pixel_values": torch.cat([case.images[0]["pixel_values"]] * 3),
    }
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    labels = torch.full((3, 10), -100)
    labels[0, 7:10], labels[1, 8] = torch.tensor([30, -100, 32]), 34  # the third row trains nothing
    made = plan_labelled(case.model.config, inputs, labels, max_tokens=50)
    assert [tree.token_T for tree in made.trees] == [(*image, 20, 30, 31, 21, 33)]
    states = packed_states(case.model, made.trees, made.images)
    assert states.target_N.tolist() == labels[labels != -100].tolist()
    logits = case.model(**inputs).logits[:, :-1].log_softmax(-1)
    trained = labels[:, 1:] != -100
    expected = logits[trained].gather(1, labels[:, 1:][trained][:, None]).squeeze(1)
    torch.testing.assert_close(logp(case, states), expected, rtol=0, atol=1e-10)
    labels[1, 3] = IMAGE
    with pytest.raises(ValueError, match="row 1 has labels before the end of its images"):
        plan_labelled(case.model.config, inputs, labels, max_tokens=50)


def test_on_nf4_with_lora() -> None:
    """The schooled model of the other tests, quantised, in fp32, on prompts of its own processor."""
    model, processor = tiny.with_lora(tiny.loaded().model), tiny.make_processor()
    samples = [sample for sample in tiny.samples() if len(sample.options) == 3][:2]
    inputs = encode_prompts(processor, samples, instruction=tiny.INSTRUCTION)
    completions, owner = [[7, 9, 11, 5], [300], [7, 9, 8], [20, 21]], [0, 0, 1, 1]
    made = plan(model.config, inputs, completions, owner, max_tokens=500, merge=True)
    states = packed_states(model, made.trees, made.images)
    case = Case(model, [], [])
    found = logp(case, states)
    expected = logp(case, separate_states(model, made.trees, made.images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = grads(case, expected)
    for name, grad in grads(case, found).items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()))


def test_passes_fill_but_do_not_exceed() -> None:
    (short,) = prefix_trees([Root((1,), (Question((), (Chain(0, (2,)),)),))], max_tokens=9)
    (long,) = prefix_trees([Root((1, 1, 1), (Question((), (Chain(0, (2,)),)),))], max_tokens=9)
    rows = [short, short, long, short, long]
    found = [[len(tree.token_T) for tree in one] for one in packed.passes(rows, 6)]
    assert found == [[1, 1], [3, 1], [3]]
    assert [len(one) for one in packed.passes(rows, 0)] == [1] * 5
