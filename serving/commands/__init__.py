"""The server's commands of ``csr``; each function takes the rest of the command line."""
