-- Beside csr, the server's store, which the image makes itself.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
CREATE DATABASE csr_triton;
