"""What MLflow's rows say: passes of the pipeline, their stages, and how they are shown."""
