"""JSON Schema of published rows, for editors and for the reader's own files; from the table that the reader uses."""

from __future__ import annotations

from typing import Any

from sim.validation.fields import ROW


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a rows file: every spelling that `sim.validation.rows.parse` takes, and no other key."""
    needs = "a scored row needs chip or cluster, chips or a complete plan, model, seq and measured, here or in defaults"
    defaults = "values for every row that does not give its own"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Measured training runs for clustersim validate",
        "type": "object",
        "required": ["rows"],
        "properties": {
            "rows": {"type": "array", "minItems": 1, "items": {**ROW.json_schema(), "description": needs}},
            "defaults": {**ROW.json_schema(), "description": defaults},
        },
    }
