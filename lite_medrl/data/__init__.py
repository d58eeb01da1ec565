"""Where samples come from: sources, prompts, and the parser of answers."""
