"""The keys of a published row: those of a run (`sim.scenario.fields.RUN`), what was measured, where it is printed."""

from __future__ import annotations

from sim.base.fields import Field, Section
from sim.base.row_kinds import KINDS
from sim.scenario.fields import RUN_FIELDS

FLOPS = ("model", "model_full", "megatron_2021", "hardware")

# The first of these that a row gives is what it is scored on.
QUANTITY_FIELDS = (
    Field(
        "seconds_per_step",
        "time",
        "",
        ("step_time", "iteration_s", "seconds_per_iteration", "s_per_iteration", "iteration_time"),
    ),
    Field("tokens_per_s_per_chip", "count", "", ("tokens_per_s_per_gpu", "tokens_per_s_per_npu")),
    Field("tokens_per_s", "count", ""),
    Field("tflops_per_chip", "count", "", ("tflops_per_gpu", "tflops")),
    Field("mfu", "ratio", ""),
    Field("bubble", "ratio", "share of the step that the pipeline waits", ("bubble_ratio",)),
    Field("memory_gib", "count", "peak of the fullest chip"),
)
QUANTITIES = tuple(one.name for one in QUANTITY_FIELDS)
MEASURED = Section(
    "measured",
    (
        *QUANTITY_FIELDS,
        Field("peak_tflops", "count", "what MFU divides by", ("peak",)),
        Field("linearity", "ratio", "speed per chip over that of a smaller run; not scored"),
        Field("flops", "text", "what TFLOPS or MFU counts", choices=FLOPS),
    ),
    example="{seconds_per_step: 1.42}",
)
ROW = Section(
    "row",
    (
        Field("id", "text", "what it is called", ("name",)),
        Field(
            "kind",
            "text",
            "calibration: its stack's one scalar may be fitted on it; holdout: scored; unsupported: shown with the "
            "reason",
            schema={"enum": list(KINDS)},
        ),
        *RUN_FIELDS,
        Field("measured", "mapping", "what was measured", section=MEASURED),
        Field("assumed", "list", "inputs that the source does not give", items="text"),
        Field("reason", "text", "why it is not scored"),
        Field("note", "text", "anything"),
        Field("source", "text", "where it is printed"),
    ),
)
