"""Log-probs of shared prompts against separate rows and against a plain statement without code of ours."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.score import score
from lite_medrl.types import ModelError

F64 = torch.float64
COMPLETIONS = [[7, 9, 11, 5], [300], [8, 8], [20, 21, 22, 23, 24, 25], [41, 42], [43]]
OWNERS = [0, 0, 0, 1, 2, 2]  # groups of 3, 1 and 2


def inputs(dtype: torch.dtype = F64) -> dict[str, torch.Tensor]:
    """Three prompts of three lengths, so that two of them are padded on the left."""
    found = encode_prompts(tiny.make_processor(), prompts(), instruction=tiny.INSTRUCTION)
    found["pixel_values"] = found["pixel_values"].to(dtype)
    return found


def prompts() -> list[Any]:
    by_length = {len(s.options): s for s in tiny.samples()}
    return [by_length[n] for n in (3, 2, 4)]


def double_model() -> Any:
    return tiny.in_fp64(tiny.with_lora(tiny.make_model(tiny.make_processor()))).eval()


def plain(
    model: Any, batch: dict[str, torch.Tensor], completion: list[int], owner: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log_softmax of one unpadded row's logits at its completion, and the entropies there."""
    keep = batch["attention_mask"][owner].bool()
    ids = torch.cat([batch["input_ids"][owner][keep], torch.tensor(completion)])[None]
    logits = model(input_ids=ids, pixel_values=batch["pixel_values"][owner : owner + 1]).logits
    logp = (logits[0, -len(completion) - 1 : -1] / temperature).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, torch.tensor(completion)[:, None]).squeeze(1), entropy


def all_plain(model: Any, batch: Any, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    found = [plain(model, batch, c, o, temperature) for c, o in zip(COMPLETIONS, OWNERS, strict=True)]
    return torch.cat([logp for logp, _ in found]), torch.cat([entropy for _, entropy in found])


def weights(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(5), dtype=dtype)


def backward(model: Any, logp_N: torch.Tensor, entropy_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """LoRA gradients of a random weighting of log-probs and entropies."""
    model.zero_grad(set_to_none=True)
    (logp_N @ weights(len(logp_N), logp_N.dtype) + 0.3 * entropy_N.sum()).backward()
    return tiny.lora_grads(model)


def separately(model: Any, batch: Any, **options: Any) -> Any:
    return score(model, batch, COMPLETIONS, OWNERS, prefix_tree="off", **options)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_shared_is_separate_is_plain_in_fp64(temperature: float) -> None:
    model, batch = double_model(), inputs()
    expected, expected_entropy = all_plain(model, batch, temperature)
    grads = backward(model, expected, expected_entropy)
    assert all(float(g.abs().max()) > 1e-4 for g in grads.values())
    assert len(grads) == 2 * 2 * 7
    options = {"temperature": temperature, "with_entropy": True}
    for found in (
        score(model, batch, COMPLETIONS, OWNERS, **options),
        separately(model, batch, **options),
    ):
        torch.testing.assert_close(found.logp_N, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.entropy_N, expected_entropy, rtol=1e-10, atol=1e-10)
        for name, grad in backward(model, found.logp_N, found.entropy_N).items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-9, atol=1e-10, msg=name)


def apart() -> dict[str, torch.Tensor]:
    """The prompts of `inputs`, each with an image of its own."""
    batch = inputs()
    batch["pixel_values"] = batch["pixel_values"] + torch.arange(3.0, dtype=F64)[:, None, None, None]
    return batch


def seen_by_the_trunk(model: Any, run: Any) -> list[tuple[int, int]]:
    """Rows and width of every pass through the language model."""
    seen: list[Any] = []
    hook = model.get_base_model().model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    run()
    hook.remove()
    return seen


def test_trees_are_what_runs_and_each_prompt_is_computed_once() -> None:
    model, batch = double_model(), apart()
    score(model, batch, COMPLETIONS, OWNERS)  # the first call checks the model as well
    lengths = batch["attention_mask"].sum(1).tolist()
    # Prompt 0 with three completions: 3 + 0 + 1 tokens are fed (a last token predicts nothing), and so on.
    fed = [lengths[0] + 4, lengths[1] + 5, lengths[2] + 1]
    found: list[Any] = []
    seen = seen_by_the_trunk(model, lambda: found.append(score(model, batch, COMPLETIONS, OWNERS)))
    assert seen == [(3, max(fed))]
    assert found[0].tokens == sum(fed)
    assert found[0].separate_tokens == sum(
        lengths[o] + len(c) for c, o in zip(COMPLETIONS, OWNERS, strict=True)
    )
    seen = seen_by_the_trunk(
        model, lambda: score(model, batch, COMPLETIONS, OWNERS, max_tree_tokens=max(fed))
    )
    assert seen == [(1, n) for n in fed]
    seen = seen_by_the_trunk(model, lambda: separately(model, batch))
    assert seen == [(6, max(lengths) + 6)]


def test_what_shares_nothing_runs_as_plain_rows() -> None:
    model, batch = double_model(), apart()
    score(model, batch, COMPLETIONS, OWNERS)
    one_each = [[7, 9], [8, 8], [5]]
    seen = seen_by_the_trunk(model, lambda: score(model, batch, one_each, [0, 1, 2]))
    assert seen == [(3, batch["input_ids"].shape[1] + 2)]


def test_prompts_with_one_image_share_it() -> None:
    model, batch = double_model(), apart()
    batch["pixel_values"][2] = batch["pixel_values"][0]
    found = score(model, batch, COMPLETIONS, OWNERS)
    expected = separately(model, batch)
    torch.testing.assert_close(found.logp_N, expected.logp_N, rtol=1e-10, atol=1e-10)
    apart_tokens = score(model, apart(), COMPLETIONS, OWNERS).tokens
    before_the_question = tiny.TOKENS + 2  # the turn's mark, the image, the line's end
    assert apart_tokens - found.tokens >= before_the_question
    assert seen_by_the_trunk(model, lambda: score(model, batch, COMPLETIONS, OWNERS))[0][0] == 2


def test_packing_may_be_demanded_and_a_budget_is_kept() -> None:
    model, batch = double_model(), apart()
    prompt = int(batch["attention_mask"].sum(1).max())
    batch["attention_mask"][1], batch["input_ids"][1] = batch["attention_mask"][2], batch["input_ids"][2]
    with pytest.raises(ValueError, match=r"completion 3: 6 tokens after a prompt of \d+ need a row of \d+"):
        score(model, batch, [[7], [300], [8], COMPLETIONS[3]], [0, 0, 0, 1], max_tree_tokens=prompt + 4)
    found = score(model, batch, [[7, 9], [5]], [0, 1], prefix_tree="required")
    assert found.tokens < found.separate_tokens  # not by enough to be worth a mask, but it was demanded
    other = double_model()
    other.config.text_config.num_experts = 4
    with pytest.raises(ModelError, match="packing was asked for, but is not possible: llava: the load of"):
        score(other, batch, COMPLETIONS, OWNERS, prefix_tree="required")
    score(other, batch, COMPLETIONS, OWNERS)  # "auto" runs separate rows


def test_single_tokens_need_no_second_pass() -> None:
    model, batch = double_model(), inputs()
    found = score(model, batch, [[300], [17], [30]], [2, 0, 2]).logp_N
    expected = [plain(model, batch, c, o, 1.0)[0] for c, o in (([300], 2), ([17], 0), ([30], 2))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_order_of_completions_and_owners_does_not_matter() -> None:
    model, batch = double_model(), inputs()
    order = [4, 0, 5, 3, 2, 1]
    straight = score(model, batch, COMPLETIONS, OWNERS).logp_N.split([len(c) for c in COMPLETIONS])
    mixed = score(model, batch, [COMPLETIONS[i] for i in order], [OWNERS[i] for i in order]).logp_N
    torch.testing.assert_close(mixed, torch.cat([straight[i] for i in order]), rtol=1e-10, atol=1e-10)


def test_on_nf4_in_fp32() -> None:
    model = tiny.with_lora(tiny.loaded().model)
    batch = inputs(torch.float32)
    expected, entropy = all_plain(model, batch)
    grads = backward(model, expected, entropy)
    for found in (
        score(model, batch, COMPLETIONS, OWNERS, with_entropy=True),
        separately(model, batch, with_entropy=True),
    ):
        torch.testing.assert_close(found.logp_N, expected, rtol=1e-5, atol=1e-5)
        for name, grad in backward(model, found.logp_N, found.entropy_N).items():
            torch.testing.assert_close(
                grad, grads[name], rtol=1e-4, atol=1e-5 * float(grads[name].abs().max())
            )


def test_gradient_checkpointing_gives_the_same_result() -> None:
    model, batch = double_model(), inputs()
    expected = score(model, batch, COMPLETIONS, OWNERS, with_entropy=True)
    grads = backward(model, expected.logp_N, expected.entropy_N)
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for mode in ("required", "off"):
        found = score(model, batch, COMPLETIONS, OWNERS, with_entropy=True, prefix_tree=mode)
        torch.testing.assert_close(found.logp_N, expected.logp_N, rtol=1e-10, atol=1e-10)
        for name, grad in backward(model, found.logp_N, found.entropy_N).items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-9, atol=1e-10, msg=name)


def test_every_prompt_may_have_two_images() -> None:
    model, batch = double_model(), inputs()
    image_token = tiny.make_processor().image_token_id
    extra = torch.full((3, tiny.TOKENS), image_token)
    batch["input_ids"] = torch.cat([batch["input_ids"], extra, batch["input_ids"][:, -3:]], 1)
    batch["attention_mask"] = torch.cat(
        [batch["attention_mask"], torch.ones(3, tiny.TOKENS + 3, dtype=torch.long)], 1
    )
    pixels = torch.randn(
        6, *batch["pixel_values"].shape[1:], dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    batch["pixel_values"] = pixels
    shared = score(model, batch, COMPLETIONS, OWNERS).logp_N
    torch.testing.assert_close(separately(model, batch).logp_N, shared, rtol=1e-10, atol=1e-10)
