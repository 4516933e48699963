"""Standard metrics for short answers, each computed exactly as its reference evaluator does."""

from mpa_ray.metrics.metric import METRICS, Metric, score

__all__ = ["METRICS", "Metric", "score"]
