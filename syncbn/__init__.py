"""Synchronized BatchNorm by all-reduce, and everything about normalization statistics."""

from syncbn.accumulation import accumulated_statistics
from syncbn.agreement import assert_synchronized
from syncbn.collectives import norm_groups
from syncbn.comparison import Comparison, LayerComparison, compare_statistics
from syncbn.convert import convert_sync_batchnorm, revert_sync_batchnorm
from syncbn.errors import (
    BatchTooSmallError,
    ConversionError,
    EmptyBatchError,
    GroupError,
    InputError,
    OptionError,
    OrderError,
    OutOfSyncError,
    RecalibrationError,
    RecomputationError,
    ShapeError,
    SyncBNError,
)
from syncbn.fold import fold_batchnorm, folding_difference
from syncbn.frameworks import import_statistics
from syncbn.functional import sync_batch_norm
from syncbn.health import Finding, HealthReport, check_health
from syncbn.kernels import inner_loops
from syncbn.layer import SyncBatchNorm
from syncbn.norms.build import build_norm, norm_kinds
from syncbn.norms.domains import use_domain
from syncbn.order import order_checks
from syncbn.overlap import overlap_weight_gradients
from syncbn.population import Recalibration, recalibrate
from syncbn.statistics import LayerStatistics, layer_statistics
from syncbn.telemetry import LayerTelemetry, Telemetry, telemetry

__all__ = [
    "BatchTooSmallError",
    "Comparison",
    "ConversionError",
    "EmptyBatchError",
    "Finding",
    "GroupError",
    "HealthReport",
    "InputError",
    "LayerComparison",
    "LayerStatistics",
    "LayerTelemetry",
    "OptionError",
    "OrderError",
    "OutOfSyncError",
    "Recalibration",
    "RecalibrationError",
    "RecomputationError",
    "ShapeError",
    "SyncBNError",
    "SyncBatchNorm",
    "Telemetry",
    "accumulated_statistics",
    "assert_synchronized",
    "build_norm",
    "check_health",
    "compare_statistics",
    "convert_sync_batchnorm",
    "fold_batchnorm",
    "folding_difference",
    "import_statistics",
    "inner_loops",
    "layer_statistics",
    "norm_groups",
    "norm_kinds",
    "order_checks",
    "overlap_weight_gradients",
    "recalibrate",
    "revert_sync_batchnorm",
    "sync_batch_norm",
    "telemetry",
    "use_domain",
]
