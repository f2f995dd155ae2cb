"""Chakra traces: bytes that any protobuf reader takes, and a replay that ends when the step did."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.cli.main import main
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.hardware import load_cluster
from sim.trace import protobuf
from sim.trace.chakra import read, write
from sim.trace.chakra_node import COLL, COMP, RECV, SEND, Node
from sim.trace.chakra_rank import AllToAll
from sim.trace.replay import replay, run
from sim.training.jitter import Jitter

CASES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2), ("dualpipe", 1), ("dualpipe-v", 2)]


def costs(chunks=1, comm=True, **changes):
    c = ChunkCost(
        0.0123456789 / chunks,
        0.0172839 / chunks,
        0.00911111 / chunks,
        *((0.0041 / chunks, 0.0063 / chunks) if comm else ()),
    )
    return StepCosts(
        **(
            dict(
                chunks=((c,) * chunks,) * 4,
                micro_batches=12,
                p2p_s=0.00077777,
                p2p_bytes=1e6,
                grad_reduce_s=0.0171717,
                param_gather_s=0.003,
                overlap_grad_reduce=True,
                optimizer_s=0.00222,
                fixed_s=0.0005,
                tokens=1,
            )
            | changes
        )
    )


# ---------------------------------------------------------------------- wire format


def test_known_bytes():
    """Examples of the Protocol Buffers encoding guide."""
    assert protobuf.field(1, 150) == bytes.fromhex("089601")
    assert protobuf.field(2, "testing") == bytes.fromhex("120774657374696e67")
    assert protobuf.packed(6, [3, 270, 86942]) == bytes.fromhex("3206038e029ea705")
    assert protobuf.field(1, -2) == bytes.fromhex("08feffffffffffffffff01")
    assert protobuf.field(3, 1.5) == bytes([0x19]) + struct.pack("<d", 1.5)


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))))
@settings(deadline=None, max_examples=60)
def test_fields_come_back(items):
    assert list(protobuf.fields(b"".join(protobuf.field(n, v) for n, v in items))) == items


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_noise_is_refused_not_crashed(data):
    try:
        for message in protobuf.split(data):
            list(protobuf.fields(message))
    except InputError as err:
        assert "\n" not in str(err)


def test_node_bytes_follow_the_schema():
    """Field numbers of et_def.proto: id 1, name 2, type 3, data_deps 5, start 6, duration 7, attr 10; in an attribute
    name 1, int32 7, int64 9, bool 27, string 29."""
    node = Node(
        7, "send", SEND, [3, 300], 10, 250, {"is_cpu_op": False, "comm_size": 1 << 40, "comm_dst": 5, "pg_name": "2"}
    )
    parts = list(protobuf.fields(node.encode()))
    assert [n for n, _ in parts] == [1, 2, 3, 5, 6, 7, 10, 10, 10, 10]
    assert parts[3][1] == b"\x03\xac\x02"
    attributes = [dict(protobuf.fields(v)) for n, v in parts if n == 10]
    assert attributes == [
        {1: b"is_cpu_op", 27: 0},
        {1: b"comm_size", 9: 1 << 40},
        {1: b"comm_dst", 7: 5},
        {1: b"pg_name", 29: b"2"},
    ]
    assert Node.decode(node.encode()) == node


# ---------------------------------------------------------------------- traces


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("comm", [True, False])
@pytest.mark.parametrize("schedule, chunks", CASES)
def test_replay_ends_with_the_step(tmp_path, schedule, chunks, comm, overlap):
    result = write(costs(chunks, comm, overlap_grad_reduce=overlap), schedule, tmp_path, replicas=8)
    again = replay(tmp_path)
    assert again.step_us == pytest.approx(result.step_s * 1e6, abs=2)  # rounding, nothing else
    assert len(again.ends_us) == 4


def test_folded_and_unfolded_files(tmp_path):
    a = write(costs(), "1f1b", tmp_path / "folded", replicas=6)
    write(costs(), "1f1b", tmp_path / "whole", replicas=6, fold=False)
    assert len(list((tmp_path / "folded").glob("*.et"))) == 4 and len(list((tmp_path / "whole").glob("*.et"))) == 24
    assert (
        replay(tmp_path / "folded").step_us
        == replay(tmp_path / "whole").step_us
        == pytest.approx(a.step_s * 1e6, abs=2)
    )
    fold = json.loads((tmp_path / "folded" / "step.fold.json").read_text())
    assert fold["replicas"] == 6 and fold["written_replicas"] == 1 and "6dc63e147b9d" in fold["schema"]
    groups = json.loads((tmp_path / "whole" / "step.json").read_text())
    assert groups["1"] == [0, 4, 8, 12, 16, 20] and groups["0"] == list(range(24))


def test_a_slow_replica_is_a_second_set_of_files(tmp_path):
    result = write(costs(), "1f1b", tmp_path, replicas=9, jitter=Jitter(slow=((5, 2, 1.3),)))
    assert len(list(tmp_path.glob("*.et"))) == 8
    assert replay(tmp_path).step_us == pytest.approx(result.step_s * 1e6, abs=2)


def test_nodes_say_what_simulators_need(tmp_path):
    write(costs(), "1f1b", tmp_path, grad_bytes=8e9, all_to_all=AllToAll(bytes=4e6, members=4))
    version, nodes = read(tmp_path / "step.1.et")
    assert version == "0.0.4" and {n.type for n in nodes} == {COMP, SEND, RECV, COLL}
    assert all(isinstance(n.duration_us, int) and n.attrs["is_cpu_op"] is False for n in nodes)
    assert all(d < n.id for n in nodes for d in n.deps)
    assert {n.attrs["comm_type"] for n in nodes if n.type == COLL} == {0, 2, 6}
    assert all(
        {"comm_size", "comm_src", "comm_dst", "comm_tag"} <= n.attrs.keys() for n in nodes if n.type in (SEND, RECV)
    )
    reduced = sum(n.attrs["comm_size"] for n in nodes if n.name == "gradient reduction")
    assert reduced == pytest.approx(8e9, rel=1e-6)
    sends = {
        (f, n.attrs["comm_dst"], n.attrs["comm_tag"])
        for f in range(4)
        for n in read(tmp_path / f"step.{f}.et")[1]
        if n.type == SEND
    }
    receives = {
        (n.attrs["comm_src"], f, n.attrs["comm_tag"])
        for f in range(4)
        for n in read(tmp_path / f"step.{f}.et")[1]
        if n.type == RECV
    }
    assert sends == receives and len(sends) == 2 * 3 * 12


@pytest.mark.parametrize("weights", [(1, 3, 1, 1), (4, 1, 1, 1), (1, 1, 1, 1)])
def test_skewed_all_to_all_is_sends_and_receives(tmp_path, weights):
    result = write(costs(), "1f1b", tmp_path, all_to_all=AllToAll(bytes=6e6, members=4, weights=weights))
    nodes = read(tmp_path / "step.0.et")[1]
    out = [n for n in nodes if n.name.startswith("all-to-all to")]
    assert {n.attrs["comm_dst"] for n in out} == {4, 8, 12} and not any(n.attrs.get("comm_type") == 6 for n in nodes)
    assert [n.attrs["comm_size"] for n in out[:3]] == [int(6e6 * w / sum(weights)) for w in weights[1:]]
    assert replay(tmp_path).step_us == pytest.approx(result.step_s * 1e6, abs=2)


def test_replay_notices_what_changed(tmp_path):
    """A negative control: make one node longer and the step must end later."""
    write(costs(), "1f1b", tmp_path)
    files = [read(tmp_path / f"step.{f}.et")[1] for f in range(4)]
    groups = json.loads((tmp_path / "step.json").read_text())
    before = run(files, groups).step_us
    next(n for n in files[2] if n.type == COMP).duration_us += 5000
    assert run(files, groups).step_us > before + 2000


def test_bad_files(tmp_path):
    write(costs(), "1f1b", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        replay(tmp_path, "other")
    whole = (tmp_path / "step.0.et").read_bytes()
    (tmp_path / "step.0.et").write_bytes(whole[:-7])
    with pytest.raises(InputError, match="cut off"):
        replay(tmp_path)
    (tmp_path / "step.0.et").write_bytes(b"\x05\xff\xff\xff\xff\xff")
    with pytest.raises(InputError):
        replay(tmp_path)
    (tmp_path / "step.0.et").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        replay(tmp_path)
    (tmp_path / "step.0.et").write_bytes(whole)
    (tmp_path / "step.3.et").unlink()
    with pytest.raises(InputError, match="never start|depends"):
        run([read(tmp_path / f"step.{f}.et")[1][:-40] for f in range(3)], {})
    with pytest.raises(InputError, match="weights"):
        write(costs(), "1f1b", tmp_path, all_to_all=AllToAll(1.0, 3, (1.0, 1.0)))
    with pytest.raises(InputError, match="4096"):
        write(costs(), "1f1b", tmp_path, replicas=1025, jitter=Jitter(noise=0.1))


def save(folder, *files: list[Node], prefix="all_reduce"):
    folder.mkdir(exist_ok=True)
    for number, nodes in enumerate(files):
        encoded = protobuf.delimited([protobuf.field(1, "0.0.4"), *(node.encode() for node in nodes)])
        (folder / f"{prefix}.{number}.et").write_bytes(encoded)


def collective(kind=0, size=1 << 20, us=0, **attrs) -> Node:
    return Node(0, "collective", COLL, duration_us=us, attrs={"comm_type": kind, "comm_size": size, **attrs})


@pytest.mark.parametrize("prefix", ["all_reduce", "step", "llama.7b.trace", "chakra_trace"])
def test_a_prefix_of_any_name_is_found(tmp_path, prefix):
    save(tmp_path, [collective(us=70)], [collective(us=70)], prefix=prefix)
    assert replay(tmp_path).step_us == replay(tmp_path, prefix).step_us == 70


def test_several_prefixes_are_told_apart(tmp_path, capsys):
    save(tmp_path, [collective(us=70)], prefix="a")
    save(tmp_path, [collective(us=90)], prefix="b")
    with pytest.raises(InputError, match="traces of a, b; give one of them as --prefix a"):
        replay(tmp_path)
    assert main(["trace", "--replay", str(tmp_path), "--prefix", "b"]) == 0
    assert "0.000090 s" in capsys.readouterr().out


def test_a_missing_number_is_not_passed_over(tmp_path):
    save(tmp_path, *[[collective(us=70)]] * 3)
    (tmp_path / "all_reduce.1.et").unlink()
    with pytest.raises(InputError, match=r"all_reduce\.1\.et: no such file"):
        replay(tmp_path)


def textbook(kind: int, size: float, n: int) -> float:
    """Seconds without latency on NVLink of an H100: a ring sends (n − 1)/n of the buffer, an all-reduce twice, an
    all-gather or gather n times, for its bytes are those that one rank gives (ASTRA-sim's Ring.cc)."""
    passes = {0: 2.0, 2: n, 3: n, 4: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}[kind]
    return passes * size * (n - 1) / n / (450e9 * 0.81)


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("n", [2, 8])
def test_a_collective_without_duration_takes_what_the_fabric_gives(tmp_path, kind, n):
    size = 1 << 30
    save(tmp_path, *[[collective(kind, size)]] * n)
    seconds = replay(tmp_path, cluster=load_cluster("dgx_h100")).step_s
    assert seconds == pytest.approx(textbook(kind, size, n), rel=0.25)
    save(tmp_path, *[[collective(kind, 2 * size)]] * n)
    assert replay(tmp_path, cluster=load_cluster("dgx_h100")).step_s == pytest.approx(2 * seconds, rel=0.02)


def test_a_group_over_the_network_is_slower_than_one_inside_a_node(tmp_path):
    save(tmp_path, *[[collective(size=1 << 30, pg_name=str(f % 2))] for f in range(16)])
    groups = {"0": list(range(0, 16, 2)), "1": list(range(1, 16, 2))}
    (tmp_path / "all_reduce.json").write_text(json.dumps(groups))
    apart = replay(tmp_path, cluster=load_cluster("dgx_h100")).step_us
    groups = {"0": list(range(8)), "1": list(range(8, 16))}
    save(tmp_path, *[[collective(size=1 << 30, pg_name=str(f // 8))] for f in range(16)])
    (tmp_path / "all_reduce.json").write_text(json.dumps(groups))
    assert apart > 1.5 * replay(tmp_path, cluster=load_cluster("dgx_h100")).step_us


def test_compute_and_sends_without_duration(tmp_path):
    """1e12 operations at 989.4 TFLOPS; 1 GiB read at 3.35 TB/s; then 1 GiB to the neighbour over NVLink."""
    ops = Node(0, "matmul", COMP, attrs={"num_ops": 10**12, "tensor_size": 1 << 20})
    read_ = Node(1, "norm", COMP, [0], attrs={"num_ops": 1, "tensor_size": 1 << 30})
    sent = {"comm_size": 1 << 30, "comm_src": 0, "comm_dst": 1, "comm_tag": 3}
    save(tmp_path, [ops, read_, Node(2, "send", SEND, [1], attrs=sent)], [Node(0, "receive", RECV, attrs=sent)])
    expected = 1e12 / 989.4e12 + 2**30 / 3.35e12 + 2**30 / (450e9 * 0.81)
    assert replay(tmp_path, cluster=load_cluster("dgx_h100")).step_s == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    "node",
    [
        collective(),
        Node(0, "matmul", COMP, attrs={"num_ops": 10**12}),
        Node(0, "send", SEND, attrs={"comm_size": 1 << 20, "comm_src": 0, "comm_dst": 1, "comm_tag": 0}),
    ],
    ids=["collective", "compute", "send"],
)
def test_work_without_a_time_is_refused_and_the_remedy_works(tmp_path, capsys, node):
    other = Node(0, "receive", RECV, attrs=node.attrs) if node.type == SEND else node
    save(tmp_path, [node], [other])
    assert main(["trace", "--replay", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no duration; give --cluster dgx_h100" in error
    assert main(["trace", "--replay", str(tmp_path), "--cluster", "dgx_h100"]) == 0
    assert "0.000000" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "nodes, words",
    [
        ([Node(0, "nothing", COMP)], "nothing takes time"),
        ([], "nothing takes time"),
        ([collective(9)], "type 9, which is not timed"),
        ([Node(0, "a", COMP, duration_us=3), Node(0, "b", COMP, duration_us=3)], "2 nodes have the number 0"),
        ([Node(4, "a", COMP, [4], duration_us=3)], "2 nodes never start, of file 0 node 4 'a': .* or a circle"),
        ([Node(0, "load", 2, attrs={"tensor_size": 1 << 20})], "another memory, whose rate nothing says"),
        ([Node(0, "send", SEND, attrs={"comm_size": 1 << 20})], "neither a duration nor a comm_dst"),
        ([Node(0, "receive", RECV, attrs={"comm_size": 1 << 20})], "neither a duration nor a comm_src"),
        ([Node(0, "send", SEND, attrs={"comm_size": 1 << 20, "comm_dst": "x"})], "comm_dst is 'x', not a whole number"),
        ([Node(1, "matmul", COMP, [7], duration_us=3)], "depends on 7, which is not there"),
        ([collective(us=3, pg_name="9")], "group '9' is not among"),
        (
            [collective(us=3, pg_name="1")],
            "file 0: node 0 'collective' is of group '1', whose ranks .*1, 2.* are without",
        ),
    ],
)
def test_what_cannot_be_replayed_is_one_line(tmp_path, nodes, words):
    save(tmp_path, nodes, nodes)
    (tmp_path / "all_reduce.json").write_text('{"0": [0, 1], "1": [1, 2]}')
    with pytest.raises(InputError, match=words) as caught:
        replay(tmp_path, cluster=load_cluster("dgx_h100"))
    assert "\n" not in str(caught.value)


SIZE = 1 << 20
ALONE = [Node(0, "c", COMP, duration_us=100), Node(1, "r", COLL, [0], attrs={"comm_size": SIZE, "comm_type": 0})]


def test_a_collective_of_one_file_is_timed_by_its_group_or_refused():
    """A rank's file alone, as many are kept: 100 µs and a collective that must not take nothing."""
    h100 = load_cluster("dgx_h100")
    with pytest.raises(InputError, match="in a trace of one file"):
        run([ALONE], {}, h100)
    grouped = [ALONE[0], Node(1, "r", COLL, [0], attrs={**ALONE[1].attrs, "pg_name": "tp"})]
    alone, both = run([grouped], {"tp": [0, 1]}, h100), run([grouped, grouped], {"tp": [0, 1]}, h100)
    assert alone.step_us == both.step_us > 100
    assert run([grouped], {"tp": [0]}, h100).step_us == 100  # a group of one moves nothing


def test_a_receive_without_its_sender_s_file_takes_the_message_s_time():
    """1 MiB over an NVLink of 450 GB/s each way takes a few microseconds and its latency."""
    receive = Node(0, "r", RECV, attrs={"comm_size": SIZE, "comm_src": 1, "comm_tag": 0})
    send = Node(0, "s", SEND, attrs={"comm_size": SIZE, "comm_dst": 1, "comm_tag": 0})
    h100 = load_cluster("dgx_h100")
    assert run([[receive]], {}, h100).step_us == run([[send]], {}, h100).step_us > 2


@pytest.mark.parametrize(
    "number, raw",
    [
        *((3, struct.pack("<d", SIZE)), (5, struct.pack("<f", SIZE)), (19, struct.pack("<I", SIZE))),
        *((21, struct.pack("<Q", SIZE)), (25, struct.pack("<q", SIZE))),
        *((9, SIZE), (11, SIZE), (17, 2 * SIZE), (29, str(SIZE))),
    ],
)
def test_a_number_of_any_type_of_the_schema_is_that_number(number, raw):
    """AttributeProto of et_def.proto: double 3, float 5, fixed32 19, fixed64 21, sfixed64 25, int64 9, uint32 11,
    sint64 17 (twice the number for one that is not negative), string 29."""
    if isinstance(raw, bytes):
        value = protobuf.varint(number << 3 | (1 if len(raw) == 8 else 5)) + raw
    else:
        value = protobuf.field(number, raw)
    message = protobuf.field(1, 0) + protobuf.field(3, COLL)
    node = Node.decode(message + protobuf.field(10, protobuf.field(1, "comm_size") + value))
    assert float(node.attrs["comm_size"]) == SIZE
    assert run([[node], [node]], {}, load_cluster("dgx_h100")).step_us > 2


@pytest.mark.parametrize("text", ["[]", "{", '{"0": 3}', '{"0": ["x"]}'])
def test_groups_that_are_none_are_refused(tmp_path, text):
    save(tmp_path, [collective(us=3)])
    (tmp_path / "all_reduce.json").write_text(text)
    with pytest.raises(InputError, match="not communicator groups"):
        replay(tmp_path)


# ---------------------------------------------------------------------- what other collectors write


def test_one_stream_runs_one_compute_node_at_a_time():
    """Chakra's generator has two nodes without dependencies; a chip takes them one after the other, streams and the
    host's threads side by side."""

    def nodes(*attrs):
        return [Node(k, "c", COMP, duration_us=5, attrs=each) for k, each in enumerate(attrs)]

    assert run([nodes({}, {})], {}).step_us == 10
    assert run([nodes({"stream": 7}, {"stream": 7}, {"stream": 20})], {}).step_us == 10
    assert run([nodes({"is_cpu_op": True}, {"is_cpu_op": False})], {}).step_us == 5
    assert run([nodes({"is_cpu_op": True, "tid": 1}, {"is_cpu_op": True, "tid": 2})], {}).step_us == 5


def test_groups_of_any_file_beside_the_traces(tmp_path):
    """STAGE and ASTRA-sim call it comm_group.json: pairs inside a node are faster than all four would be."""
    h100 = load_cluster("dgx_h100")
    save(tmp_path, *[[collective(size=1 << 30, pg_name=str(f // 2))] for f in range(4)])
    inferred = replay(tmp_path, cluster=h100).step_us  # who names a group is in it
    (tmp_path / "comm_group.json").write_text('{"0": [0, 1], "1": [2, 3]}')
    assert replay(tmp_path, cluster=h100).step_us == inferred
    save(tmp_path, *[[collective(size=1 << 30)]] * 4)
    assert replay(tmp_path, cluster=h100).step_us > 1.3 * inferred
    (tmp_path / "groups_of_another.json").write_text('{"0": [0, 1]}')
    with pytest.raises(InputError, match="may each be its communicator groups; copy the right one to all_reduce.json"):
        replay(tmp_path, cluster=h100)
    (tmp_path / "all_reduce.json").write_text('{"0": [0, 1], "1": [2, 3]}')
    replay(tmp_path, cluster=h100)


def test_groups_that_pytorch_lists_in_a_node():
    """`process_group:init` of a trace converted from PyTorch: one file alone has its partners' numbers."""
    listed = """['[{"pg_name": "0", "ranks": [], "group_size": 2}, {"pg_name": "1", "ranks": [0, 1, 2, 3]}]']"""
    metadata = protobuf.field(1, 0) + protobuf.field(3, 1) + protobuf.field(8, protobuf.field(1, listed))
    init, h100 = Node.decode(metadata), load_cluster("dgx_h100")
    reduced = dataclasses.replace(collective(size=1 << 30, pg_name="1"), id=1)
    assert run([[init, reduced]], {}, h100).step_us == run([[reduced]], {"1": [0, 1, 2, 3]}, h100).step_us > 1000
    with pytest.raises(InputError, match="lists process groups that cannot be read"):
        run([[dataclasses.replace(init, inputs='[{"pg_name": 3}]'), reduced]], {}, h100)


def test_a_collective_over_some_dimensions_says_so():
    """The `involved_dim` of ASTRA-sim's text converter: the network it means is not in the trace."""
    some = protobuf.field(10, protobuf.field(1, "involved_dim") + protobuf.field(28, protobuf.packed(1, [1, 0])))
    node = Node.decode(collective().encode() + some)
    assert node.attrs["involved_dim"] == (True, False) and Node.decode(node.encode()) == node
    with pytest.raises(InputError, match="some dimensions of its writer's network"):
        run([[node]] * 4, {}, load_cluster("dgx_h100"))
    node.attrs["involved_dim"] = (True, True)
    assert run([[node]] * 4, {}, load_cluster("dgx_h100")).step_us > 0


def test_messages_whose_ends_nothing_says_take_their_own_time():
    """PyTorch's sends and receives have neither end; those that name them still wait for one another."""
    send, receive = (Node(0, "nccl", kind, duration_us=40, attrs={"comm_size": SIZE}) for kind in (SEND, RECV))
    assert run([[send], [receive]], {}).step_us == 40
    late = [Node(0, "c", COMP, duration_us=100), Node(1, "s", SEND, [0], duration_us=40, attrs={"comm_dst": 1})]
    assert run([late, [Node(0, "r", RECV, duration_us=1, attrs={"comm_src": 0})]], {}).ends_us[1] == {0: 140}


def test_dependencies_elsewhere():
    """Another file's node where all numbers differ, as chakra's generator counts; a caller that a converter left out
    holds up nothing; what may be any file's, or none's, is refused."""
    first = [Node(0, "a", COMP, duration_us=100)]
    assert run([first, [Node(1, "b", COMP, [0], duration_us=10)]], {}).step_us == 110
    assert run([[Node(3, "b", COMP, duration_us=10, callers=[0])]], {}).step_us == 10
    called = [*first, Node(3, "b", COMP, duration_us=10, callers=[0], attrs={"stream": 7})]
    assert run([called], {}).step_us == 110
    alike = [Node(1, "b", COMP, [0], duration_us=10)]
    with pytest.raises(InputError, match="depends on 0, which is not there; give the files of all ranks"):
        run([[*first, Node(1, "c", COMP, duration_us=1)], alike], {})


@pytest.mark.parametrize(
    "names", [("rank_0.et", "rank_1.et"), ("rank0.et", "rank1.et"), ("et-0.et", "et-1.et"), ("0.et", "1.et")]
)
def test_ranks_of_any_spelling(tmp_path, names):
    save(tmp_path, [collective(us=70)], [collective(us=90)])
    for number, name in enumerate(names):
        (tmp_path / f"all_reduce.{number}.et").rename(tmp_path / name)
    assert replay(tmp_path).step_us == 90


def test_a_file_that_begins_with_a_node_loses_none(tmp_path):
    for first in (Node(0, "a", COMP, duration_us=5), Node(7, "a", COMP, duration_us=5)):
        nodes = [first, Node(8, "b", COMP, [first.id], duration_us=3)]
        (tmp_path / "x.0.et").write_bytes(protobuf.delimited([node.encode() for node in nodes]))
        assert replay(tmp_path).step_us == 8


def test_what_chakra_jsonizer_makes_of_a_trace(tmp_path):
    """Messages as Protocol Buffers' JSON mapping has them, one after another: 100 µs, then 50 µs together."""
    metadata = '{"version": "0.0.4"}'
    compute = """{"id": "1", "name": "matmul", "type": "COMP_NODE", "durationMicros": "100",
      "attr": [{"name": "is_cpu_op", "boolVal": false}, {"name": "involved_dim", "boolList": {"values": [true]}}]}"""
    reduced = """{"id": "2", "name": "reduce", "type": "COMM_COLL_NODE", "dataDeps": ["1"], "duration_micros": "50",
      "attr": [{"name": "comm_size", "int64Val": "1048576"}, {"name": "comm_type", "uint64Val": "0"},
               {"name": "pg_name", "stringVal": "0"}, {"name": "share", "doubleVal": 0.5}]}"""
    for number in range(2):
        (tmp_path / f"step.{number}.json").write_text(metadata + compute + reduced)
    assert replay(tmp_path).step_us == 150
    _, nodes = read(tmp_path / "step.0.json")
    assert nodes[1].attrs == {"comm_size": 1 << 20, "comm_type": 0, "pg_name": "0", "share": 0.5}
    for text, words in (("{", "not JSON from character"), ("{}[]", "not JSON"), ("", "not what chakra_jsonizer")):
        (tmp_path / "step.1.json").write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            replay(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "step.1.json").write_text(metadata + '{"id": "1", "type": "NO_SUCH_NODE"}')
    with pytest.raises(InputError, match="not what chakra_jsonizer"):
        replay(tmp_path)


@pytest.mark.parametrize("group", ["", "tp"])
def test_the_remedy_for_a_lone_file_works(tmp_path, group):
    """As the refusal says: its ranks in PREFIX.json; it then takes what all four would."""
    h100, named = load_cluster("dgx_h100"), {"pg_name": group} if group else {}
    save(tmp_path, [collective(size=1 << 30, **named)])
    with pytest.raises(InputError) as refusal:
        replay(tmp_path, cluster=h100)
    remedy = str(refusal.value).partition("such as ")[2].partition(", or add")[0]
    (tmp_path / "all_reduce.json").write_text(remedy)
    alone = replay(tmp_path, cluster=h100).step_us
    (tmp_path / "all_reduce.json").unlink()
    save(tmp_path, *[[collective(size=1 << 30, **named)]] * 4)
    assert replay(tmp_path, cluster=h100).step_us == alone
