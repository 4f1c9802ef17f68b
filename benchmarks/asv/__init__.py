"""A small suite whose history asv keeps, by commit: the calls that users make, on fixed inputs.

    asv run --config benchmarks/asv.conf.json --python=same --quick

Unlike the scripts beside it, it has no rivals: it is there to see when something became slower.
Methods `time_*` are timed, `peakmem_*` are the process's memory at its peak.
"""
