"""What a recorder does not measure stays in its file, and a file that it cannot read is refused in one line."""

import pytest

from minglm.errors import InputError
from minglm.tools import demo_seeds, induction, long_rows, qat_vs_ptq


def _rows(seed, loss):
    plain = {"training": "plain", "format": "none", "bits_per_weight": 32.0, "bytes": 10.0, "val_loss": loss}
    return [{"seed": seed, **plain, "loss_added": 0.0, "needles": None, "questions": None}]


def test_a_seed_measured_again_replaces_its_rows_alone(tmp_path, monkeypatch, capsys):
    out = tmp_path / "quantization.csv"
    qat_vs_ptq.write(_rows(0, 1.0) + _rows(1, 2.0), out)
    monkeypatch.setattr(qat_vs_ptq, "compare", lambda base, kept, seeds, **more: _rows(*seeds, 3.0))
    assert qat_vs_ptq.main(["base", "--seeds", "0", "--out", str(out)]) == 0
    assert [(r["seed"], r["val_loss"]) for r in qat_vs_ptq.read(out)] == [(0, 3.0), (1, 2.0)]
    assert "written" in capsys.readouterr().out


@pytest.mark.parametrize("recorder", [demo_seeds, induction, long_rows, qat_vs_ptq])
def test_another_file_is_refused_with_the_command_that_makes_one(tmp_path, recorder):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for path in (tmp_path / "other.csv", tmp_path / "none.csv"):
        with pytest.raises(InputError, match=f"python -m {recorder.__name__}"):
            recorder.read(path)


def test_the_record_of_rounding_has_every_training_on_every_seed_and_the_task_beside_the_loss():
    rows = qat_vs_ptq.read()
    assert len(rows) == 6 * 3 and {r["seed"] for r in rows} == {0, 1, 2}
    for r in rows:
        plain = next(x for x in rows if (x["seed"], x["training"], x["format"]) == (r["seed"], "plain", "none"))
        assert r["loss_added"] == pytest.approx(r["val_loss"] - plain["val_loss"], abs=2e-5)
        assert r["questions"] >= 40 and 0 <= r["needles"] <= 1
    assert len(qat_vs_ptq.summary(rows)) == 6
