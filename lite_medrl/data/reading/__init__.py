"""How texts are read and judged: what counts as equal, our profiles, and one file a published rule."""
