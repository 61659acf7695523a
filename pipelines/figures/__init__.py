"""The pipeline's figures, a module a stage, so that a stage runs again for changes of its own figures only."""
