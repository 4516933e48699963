"""The field's metrics for short answers, each exactly as its evaluator computes it."""

from mpa_ray.metrics.metric import METRICS, Metric, score

__all__ = ["METRICS", "Metric", "score"]
