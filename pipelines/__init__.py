"""The training pipeline: one thin module a DVC stage, and the Ray Train, MLflow and DVC glue.

MLflow, Ray and DVC report usage to their makers unless told not to, and read that setting when they are imported; so it
is made here, before any of them is. Hospital networks are closed, and a blocked call costs seconds.

OpenMP's threads wait passively: by default they spin, and on a machine that does anything else at the same time two
spinning threads made a training step five times slower than two sleeping ones.
"""

import os

for _variable, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("DVC_NO_ANALYTICS", "true"),
    ("OMP_WAIT_POLICY", "passive"),
):
    os.environ.setdefault(_variable, _value)
