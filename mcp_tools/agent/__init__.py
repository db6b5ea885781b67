"""A model and its tools in turns: one step, or a loop of them under limits."""
