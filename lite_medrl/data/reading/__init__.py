"""How texts are read and judged: one file for what counts as equal, one for the tolerant reading, one a source."""
