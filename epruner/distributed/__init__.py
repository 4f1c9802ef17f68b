"""The same answers from several processes, by torch.distributed."""
