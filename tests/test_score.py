"""Log-probs of shared prompts against separate rows and against a plain statement without code of ours."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lite_medrl.model import score as score_module
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.score import repeat_rows, score

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


def separately(monkeypatch: pytest.MonkeyPatch, model: Any, batch: Any, **options: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(score_module, "has_plain_positions", lambda model: False)
        return score(model, batch, COMPLETIONS, OWNERS, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_shared_is_separate_is_plain_in_fp64(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    model, batch = double_model(), inputs()
    expected, expected_entropy = all_plain(model, batch, temperature)
    grads = backward(model, expected, expected_entropy)
    assert all(float(g.abs().max()) > 1e-4 for g in grads.values())
    assert len(grads) == 2 * 2 * 7
    options = {"temperature": temperature, "with_entropy": True}
    for found in (
        score(model, batch, COMPLETIONS, OWNERS, **options),
        separately(monkeypatch, model, batch, **options),
    ):
        torch.testing.assert_close(found.logp_N, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.entropy_N, expected_entropy, rtol=1e-10, atol=1e-10)
        for name, grad in backward(model, found.logp_N, found.entropy_N).items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-9, atol=1e-10, msg=name)


def test_the_shared_path_is_the_one_that_runs_and_computes_each_prompt_once() -> None:
    model, seen = double_model(), []
    hook = model.get_base_model().model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    batch = inputs()
    score(model, batch, COMPLETIONS, OWNERS)
    hook.remove()
    assert seen == [batch["input_ids"].shape, (6, 5)]  # 3 prompts; 6 completions without their last token


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


def test_on_nf4_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.with_lora(tiny.loaded().model)
    batch = inputs(torch.float32)
    expected, entropy = all_plain(model, batch)
    grads = backward(model, expected, entropy)
    for found in (
        score(model, batch, COMPLETIONS, OWNERS, with_entropy=True),
        separately(monkeypatch, model, batch, with_entropy=True),
    ):
        torch.testing.assert_close(found.logp_N, expected, rtol=1e-5, atol=1e-5)
        for name, grad in backward(model, found.logp_N, found.entropy_N).items():
            torch.testing.assert_close(
                grad, grads[name], rtol=1e-4, atol=1e-5 * float(grads[name].abs().max())
            )


def test_gradient_checkpointing_falls_back_to_separate_rows_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch, called = double_model(), inputs(), []
    expected = score(model, batch, COMPLETIONS, OWNERS, with_entropy=True)
    grads = backward(model, expected.logp_N, expected.entropy_N)
    real = score_module._separate
    monkeypatch.setattr(score_module, "_separate", lambda *args: called.append(1) or real(*args))
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    found = score(model, batch, COMPLETIONS, OWNERS, with_entropy=True)
    assert called
    torch.testing.assert_close(found.logp_N, expected.logp_N, rtol=1e-10, atol=1e-10)
    for name, grad in backward(model, found.logp_N, found.entropy_N).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-9, atol=1e-10, msg=name)


def test_every_prompt_may_have_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
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
    torch.testing.assert_close(separately(monkeypatch, model, batch).logp_N, shared, rtol=1e-10, atol=1e-10)


def test_patches_are_regrouped_by_image() -> None:
    grid = torch.tensor([[1, 1, 2], [1, 2, 2], [1, 1, 3], [1, 1, 1]])
    patches = torch.arange(10.0)[:, None]  # images of 2, 4, 3 and 1 patches; two images a prompt
    batch = {"input_ids": torch.tensor([[1], [2]]), "image_grid_thw": grid, "pixel_values": patches}
    rows = repeat_rows(batch, torch.tensor([1, 0, 1]))
    assert rows["input_ids"].flatten().tolist() == [2, 1, 2]
    assert rows["pixel_values"].flatten().tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert rows["image_grid_thw"].tolist() == grid[[2, 3, 0, 1, 2, 3]].tolist()
    with pytest.raises(ValueError, match="different numbers of images"):
        repeat_rows(batch | {"input_ids": torch.tensor([[1], [2], [3]])}, torch.tensor([0]))
