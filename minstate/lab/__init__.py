"""What looks at the engine from outside: weights, workloads, baselines, measurements, figures."""
