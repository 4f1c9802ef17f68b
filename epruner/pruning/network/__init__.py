"""What does the user bring? Inputs, private copies of the model, what each layer type is, its
filters; and the ranks that share the work on inputs."""
