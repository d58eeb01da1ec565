"""Turns samples and sampled answers into better weights: rewards, SFT and GRPO."""
