"""What is done for the filters that went? The weights that stay learn to do without them."""
