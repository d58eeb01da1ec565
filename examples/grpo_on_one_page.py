"""GRPO on one page: sample answers to each question, reward them, make the better ones of a group likelier.

The whole algorithm without a trainer class, from pure functions, in the order of README's "path of one
question". Against `lite_medrl.GRPOTrainer` it leaves out KL, old policies (a batch is used once, so all
ratios are 1), schedules, accumulation and checkpoints; loss and gradient are the same. The embedded base
mostly answers outside the options, so that its rewards vary little: a short SFT from the same functions comes
first. A few minutes on a CPU, nothing is downloaded; sampled answers get better slowly, over 100 steps:

    python examples/grpo_on_one_page.py --steps 160

Letters: P prompts (questions), G completions of each, B = P x G completions, N tokens of all completions.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lite_medrl.data.prompts import target_text
from lite_medrl.data.sources import load_samples
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.load import add_lora, load
from lite_medrl.model.packed import Plan, packed_states, plan
from lite_medrl.train.rewards import accuracy_reward, format_reward
from lite_medrl.types import Sample
from medrl_kernels import grouped_logp, grpo_loss

P, G = 8, 8  # questions of a step, answers to each
INSTRUCTION = "think , then answer ."  # the words that the embedded model is used to
SAMPLING = Sampling(max_new_tokens=24, temperature=1.0)
FORMAT_WEIGHT = 0.2  # of the format's reward; that of a right answer is 1
TREE_TOKENS = 8192  # tokens that go through the network together


def token_logps(
    model: Any, inputs: dict[str, Tensor], completions_B: Sequence[Sequence[int]], owner_B: Sequence[int]
) -> tuple[Tensor, Plan]:
    """logp_N of all completion tokens, completion after completion, with gradient.

    A prompt, and an image that several prompts show, passes through the network once: `plan` lays them out as
    a tree with the completions as leaves. Only states that predict a completion token meet the head.
    """
    made = plan(model.config, inputs, completions_B, owner_B, max_tokens=TREE_TOKENS, merge=True)
    states = packed_states(model, made.trees, made.images, tokens_per_pass=TREE_TOKENS)
    head = model.get_output_embeddings()
    found = grouped_logp(states.hidden_SD, head.weight, states.target_N, states.source_N, bias_V=head.bias)
    return found.logp_N, made


def rewards_of(samples_B: Sequence[Sample], texts_B: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Accuracy and format rewards of each completion, 0 or 1."""
    right = accuracy_reward(texts_B, [s.answer for s in samples_B], [s.options for s in samples_B])
    return torch.tensor(right), torch.tensor(format_reward(texts_B))


def advantages(rewards_PG: Tensor) -> Tensor:
    """How far a completion is above its group's mean, in standard deviations (arXiv 2402.03300)."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    alike_P1 = (rewards_PG == rewards_PG[:, :1]).all(1, keepdim=True)  # their mean may be rounded
    return (centred_PG / (rewards_PG.std(1, keepdim=True) + 1e-4)).masked_fill(alike_P1, 0.0)


def policy_loss(
    model: Any,
    inputs: dict[str, Tensor],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
    advantage_B: Tensor,
) -> tuple[Tensor, Plan]:
    """TRL's default loss, a mean over all tokens; groups that are all alike never reach the model."""
    groups = {p for p, advantage in zip(owner_B, advantage_B.tolist(), strict=True) if advantage}
    live = [b for b, p in enumerate(owner_B) if p in groups]
    logp_N, made = token_logps(model, inputs, [completions_B[b] for b in live], [owner_B[b] for b in live])
    length_B = torch.tensor([len(completions_B[b]) for b in live], device=logp_N.device)
    tokens = sum(map(len, completions_B))
    live_B = advantage_B[live].to(logp_N.device)
    loss, _ = grpo_loss(logp_N, None, live_B, length_B, loss_type="dapo", num_items_in_batch=tokens)
    return loss, made


def grpo_step(model: Any, processor: Any, optimiser: Any, samples: Sequence[Sample], step: int) -> str:
    """One step of GRPO; returns the line that tells what happened."""
    begin = time.perf_counter()
    inputs = encode_prompts(processor, samples, instruction=INSTRUCTION, device=model.device)
    groups = generate(model, processor, inputs, num_generations=G, sampling=SAMPLING, step=step)
    flat = [completion for group in groups for completion in group]
    right_B, format_B = rewards_of([s for s in samples for _ in range(G)], [c.text for c in flat])
    advantage_PG = advantages((right_B + FORMAT_WEIGHT * format_B).view(P, G))
    live = int(advantage_PG.any(1).sum())
    line = f"grpo {step:3d}  right {right_B.mean():.2f}  in format {format_B.mean():.2f}  groups {live}/{P}"
    if live:
        owner_B = [p for p in range(P) for _ in range(G)]
        loss, made = policy_loss(model, inputs, [c.token_ids for c in flat], owner_B, advantage_PG.flatten())
        descend(model, optimiser, loss)
        line += f"  loss {loss.item():+.4f}  tokens {made.tokens} instead of {made.separate_tokens}"
    return f"{line}  {time.perf_counter() - begin:.1f} s"


def sft_step(model: Any, processor: Any, optimiser: Any, samples: Sequence[Sample], step: int) -> str:
    """One step of SFT on written answers: the same log-probs, each token as welcome as the other."""
    inputs = encode_prompts(processor, samples, instruction=INSTRUCTION, device=model.device)
    told = [processor.tokenizer(target_text(s) + processor.tokenizer.eos_token).input_ids for s in samples]
    logp_N, _ = token_logps(model, inputs, told, range(len(told)))
    loss = -logp_N.mean()
    descend(model, optimiser, loss)
    return f"sft  {step:3d}  loss {loss.item():.4f}"


def descend(model: Any, optimiser: Any, loss: Tensor) -> None:
    """One step of the optimiser down the clipped gradient."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimiser.step()


def main() -> None:
    """Loads the embedded model in NF4 with a LoRA, bridges by SFT, sharpens by GRPO, a line a step."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=160, help="of GRPO")
    parser.add_argument("--sft-steps", type=int, default=40, help="of SFT before")
    args = parser.parse_args()
    loaded = load("embedded")
    model = add_lora(
        loaded.model, r=16, lora_alpha=32, lora_dropout=0.0, target_modules="language-linear", seed=0
    ).eval()
    train, rng = load_samples("embedded", "train"), random.Random(0)
    for one_step, steps, rows, rate in (
        (sft_step, args.sft_steps, 3 * P, 3e-3),
        (grpo_step, args.steps, P, 4e-4),
    ):
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        for step in range(1, steps + 1):
            print(one_step(model, loaded.processor, optimiser, rng.sample(train, rows), step), flush=True)


if __name__ == "__main__":
    main()
