"""The embedded runs behind ``epruner demo``, on scikit-learn's digits: clustering, then pruning."""
