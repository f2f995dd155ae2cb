"""Messages stay messages: one that quotes a whole file keeps what begins and what ends it."""

import pickle

import pytest

from minglm.errors import LONGEST, InputError
from sim.serving.scenario import run


def test_a_message_that_quotes_a_file_keeps_its_beginning_and_its_remedy():
    error = InputError(f"acceptance={'x' * 50_000}: must be between 0 and 1")
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("acceptance=") and str(error).endswith("must be between 0 and 1")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as it comes back from another process
    assert str(InputError("seed=-1: must be 0 or more")) == "seed=-1: must be 0 or more"


def test_a_scenario_inside_a_value_is_refused_in_few_words():
    junk = {str(i): {"a": list(range(50))} for i in range(500)}
    with pytest.raises(InputError) as caught:
        run(
            {
                "kind": "serving",
                "model": "glm5",
                "decode": {"cluster": "dgx_h200", "acceptance": junk},
                "workload": {"rate": 1},
            }
        )
    assert len(str(caught.value)) <= LONGEST and "must be between 0 and 1" in str(caught.value)
