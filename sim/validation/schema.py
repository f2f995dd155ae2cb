"""JSON Schema of published rows, for editors and for the reader's own files."""

from __future__ import annotations

from sim.base.row_kinds import KINDS
from sim.scenario.options import FLOPS, MEASURED, OPTIONS
from sim.spec.hardware import PRECISIONS
from sim.spec.plan import RECOMPUTE, SCHEDULES


def json_schema() -> dict:
    """The JSON Schema of a rows file."""
    number = {"anyOf": [{"type": "number"}, {"type": "string"}]}
    types = {
        "bool": {"type": "boolean"},
        "int": {"type": "integer"},
        "number": number,
        "text": {"type": "string"},
        "list": {"type": "array"},
    }
    named = {"anyOf": [{"type": "string"}, {"type": "object"}]}
    row = {
        "type": "object",
        "additionalProperties": False,
        "description": "a scored row needs chip or cluster, chips or a complete plan, model, seq and measured, here or in defaults",
        "properties": {
            "id": {"type": "string"},
            "kind": {
                "enum": list(KINDS),
                "description": "calibration: its stack's one scalar may be fitted on it; holdout: scored; unsupported: shown with the reason",
            },
            "chip": {
                **named,
                "description": "a name of data/chips, or a mapping with peak_flops, memory_bytes, memory_bytes_per_s (like: starts from a chip)",
            },
            "cluster": {
                **named,
                "description": "a name of data/clusters, or a mapping with chip, chips_per_node, tiers (like: starts from a cluster)",
            },
            "chips": {"type": "integer", "minimum": 1},
            "model": {
                **named,
                "description": "a name of data/models, a path, a Hugging Face config, or plain dimensions: layers, hidden, heads, kv_heads, ffn, vocab, experts, experts_per_token, moe_ffn, gated_ffn …",
            },
            "plan": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    k: {"type": "integer", "minimum": 1} for k in ("tp", "pp", "dp", "vpp", "cp", "ep", "etp")
                }
                | {"sp": {"type": "boolean"}},
            },
            "schedule": {"enum": list(SCHEDULES)},
            "micro_batch": {"type": "integer", "minimum": 1, "description": "sequences"},
            "global_batch": {"type": "integer", "minimum": 1, "description": "sequences"},
            "global_tokens": number,
            "seq": {"type": "integer", "minimum": 1},
            "precision": {"enum": list(PRECISIONS)},
            "recompute": {
                "anyOf": [
                    {"enum": list(RECOMPUTE)},
                    {"type": "boolean"},
                    {
                        "type": "object",
                        "properties": {"kind": {"enum": list(RECOMPUTE)}, "layers": {"type": "integer"}},
                    },
                ]
            },
            "options": {
                "type": "object",
                "additionalProperties": False,
                "properties": {k: {**types[t], "description": text} for k, (t, text) in OPTIONS.items()},
            },
            "stack": {"type": "string", "description": "a named framework release"},
            "measured": {
                "type": "object",
                "additionalProperties": False,
                "properties": {k: number for k in MEASURED}
                | {"flops": {"enum": list(FLOPS), "description": "what TFLOPS or MFU counts"}},
            },
            "assumed": {
                "type": "array",
                "items": {"type": "string"},
                "description": "inputs that the source does not give",
            },
            "reason": {"type": "string"},
            "note": {"type": "string"},
            "source": {"type": "string"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Measured training runs for clustersim validate",
        "type": "object",
        "required": ["rows"],
        "properties": {
            "rows": {"type": "array", "minItems": 1, "items": row},
            "defaults": {**row, "description": "values for every row that does not give its own"},
        },
    }
