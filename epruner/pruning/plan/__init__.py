"""What stays where? The answer as plain data, and applying it to a model."""
