"""What the simulator misses by where it was told nothing, and how long that takes to find out."""

from __future__ import annotations

from pathlib import Path

from sim.validation.summary import summary

NAME = "validation"


def run() -> list[dict]:
    result = summary()
    worst = max((group["error"] for group in result["groups"].values()), default=0.0)
    inside = result["coverage"]["all"]

    def row(name: str, value: float, unit: str, target: str, met: bool) -> dict:
        return {"name": name, "value": value, "unit": unit, "ratio": 1.0, "target": target, "met": met}

    return [
        row("stack left out, published rows", 100 * result["left_out"], "%", "at most 8%", result["left_out"] <= 0.08),
        row("stack left out, held-out rows", 100 * result["held_out"], "%", "", True),
        row("worst published group of 3 rows", 100 * worst, "%", "at most 11%", worst <= 0.11),
        row("80% interval holds", 100 * inside["inside_80"], "%", "75 to 90%", 0.75 <= inside["inside_80"] <= 0.90),
        row("width of the 80% interval", 100 * inside["width_80"], "%", "", True),
        row("all rows", result["seconds"], "s", "at most 60 s", result["seconds"] <= 60),
    ]


if __name__ == "__main__":
    from minglm.tools import bench

    bench.run(NAME, Path("runs/bench"))
