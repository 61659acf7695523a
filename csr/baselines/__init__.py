"""The systems CSR is compared with: one paper a file, behind one protocol."""
