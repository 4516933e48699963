"""The configuration of a run: all its settings, and the functions that read and check them. The package imports nothing
heavy, so that `--help` and configuration errors appear immediately."""

from mpa_ray.config.annotate import AnnotateConfig
from mpa_ray.config.engines import EngineConfig, EngineSettings, ScriptedEngineConfig, VllmEngineConfig
from mpa_ray.config.evaluate import BenchmarkConfig, EvaluateConfig, NamedModelConfig
from mpa_ray.config.identify import AnlsMatch, AnyOfMatch, IdentifyConfig, MatcherConfig, NumericMatch, PlainMatch
from mpa_ray.config.level import (
    ARMS,
    Arm,
    ArmDescription,
    Component,
    FullConfig,
    HoldoutConfig,
    LevelConfig,
    LoraConfig,
    StudentConfig,
)
from mpa_ray.config.load import load_config, load_evaluation, load_object_store, parse_config
from mpa_ray.config.measured_model import MeasuredModel
from mpa_ray.config.models import MAX_IMAGE_PIXELS, AnswerConfig, ModelConfig, SamplingConfig
from mpa_ray.config.run import EvaluationRunConfig, LimitsConfig, PlanConfig, RunConfig
from mpa_ray.config.settings import BUNDLED, Settings, misspelled_uri, parse_location, resolve_path
from mpa_ray.config.source import DEFAULT_EXTENSIONS, ObjectStoreConfig, ReadingConfig, SourceConfig

__all__ = [
    "ARMS",
    "BUNDLED",
    "DEFAULT_EXTENSIONS",
    "MAX_IMAGE_PIXELS",
    "AnlsMatch",
    "AnnotateConfig",
    "AnswerConfig",
    "AnyOfMatch",
    "Arm",
    "ArmDescription",
    "BenchmarkConfig",
    "Component",
    "EngineConfig",
    "EngineSettings",
    "EvaluateConfig",
    "EvaluationRunConfig",
    "FullConfig",
    "HoldoutConfig",
    "IdentifyConfig",
    "LevelConfig",
    "LimitsConfig",
    "LoraConfig",
    "MatcherConfig",
    "MeasuredModel",
    "ModelConfig",
    "NamedModelConfig",
    "NumericMatch",
    "ObjectStoreConfig",
    "PlainMatch",
    "PlanConfig",
    "ReadingConfig",
    "RunConfig",
    "SamplingConfig",
    "ScriptedEngineConfig",
    "Settings",
    "SourceConfig",
    "StudentConfig",
    "VllmEngineConfig",
    "load_config",
    "load_evaluation",
    "load_object_store",
    "misspelled_uri",
    "parse_config",
    "parse_location",
    "resolve_path",
]
