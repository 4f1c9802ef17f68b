"""Which channels hang together, what does each cost, and is that so?

Groups, costs, proof by trial.
"""
