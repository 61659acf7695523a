"""Does everything that computes run on this machine, and how fast? ``python -m csr.smoke`` says."""
