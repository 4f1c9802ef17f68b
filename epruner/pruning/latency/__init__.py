"""How long networks take where they are: clocks, and times of layers by their widths."""
