"""Named data sets, one file a family, and the readers of the files they come in."""
