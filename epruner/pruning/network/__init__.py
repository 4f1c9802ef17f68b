"""What does the user bring? Inputs, private copies of the model, what each layer type is, its
filters."""
