"""How many filters stay in each layer, and which?"""
