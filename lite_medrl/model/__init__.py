"""Loads a model, runs it on shared prefixes, and samples answers from it."""
