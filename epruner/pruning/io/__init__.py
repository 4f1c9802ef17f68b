"""How does a network come in and go out? Checkpoints, saved files, exports."""
