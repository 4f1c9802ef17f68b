"""What is in here, for the frameworks that others prune with."""
