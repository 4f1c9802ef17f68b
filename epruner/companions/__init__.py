"""Systems that stand beside EPruner, small, on the same foundations.

Each file is one of them and imports none of the others.
"""
