"""Sweeps: settings of ``params.yaml`` tried side by side on Ray Tune, judged on the validation split."""
