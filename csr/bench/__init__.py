"""How fast training is, measured against what the same model could do at best: ``python -m csr.bench``."""
