"""How does a small network learn on? From labels, or from what the original answers."""
