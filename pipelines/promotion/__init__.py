"""Whether a candidate may replace the champion; `pipelines.retrain` is what asks."""
