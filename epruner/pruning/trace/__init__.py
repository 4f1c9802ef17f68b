"""What happens in a forward pass? One recorded, replayed operation by operation, and measured."""
