"""How near training comes to what a GPU can do, in eight minutes: ``python -m csr.bench_gpu``."""
