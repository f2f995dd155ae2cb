"""What SECURITY.md promises: nothing unpickled, safe YAML, names that stay in their folder, pins that are what is
installed."""

import ast
import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest

from minglm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for folder in ("minglm", "sim") for p in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "cPickle.loads",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
    "marshal.loads",
    "shelve.open",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "np.load",
    "numpy.load",
}
# A loader class that yaml.load is given here: made from yaml's safe ones.
SAFE_YAML = ("SafeLoader", "_loader(yaml)")
EVAL = {
    "minglm/course/workshop/build/solutions.py",
    "minglm/course/workshop/runner.py",
    "minglm/rl/sandbox_child.py",
    "minglm/rl/tasks_code.py",
}  # the sandbox's inside, text that we made ourselves, and what a learner asks to have checked on the own machine


def _calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _faults(path: Path, name: str) -> list[str]:
    out = []
    for called, node in _calls(path):
        where = f"{name}:{node.lineno}: {called}"
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN:
            out.append(where)
        if called == "yaml.load" and not any(s in ast.unparse(node) for s in SAFE_YAML):
            out.append(f"{where} without a safe loader")
        if called.endswith(("extractall", ".extract")) and keywords.get("filter") != "'data'":
            out.append(f"{where} without filter='data'")
        if keywords.get("shell") == "True":
            out.append(f"{where} through a shell")
        if called in ("eval", "exec") and name not in EVAL:
            out.append(where)
    return out


def test_no_unsafe_call_in_the_source():
    assert len(SOURCES) > 100
    assert [f for p in SOURCES for f in _faults(p, p.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)",
        "torch.load(p)",
        "yaml.load(t, Loader=yaml.Loader)",
        "tar.extractall(place)",
        "subprocess.run(c, shell=True)",
        "eval(t)",
    ],
)
def test_the_search_for_unsafe_calls_can_find_one(tmp_path, line):
    (tmp_path / "x.py").write_text(line + "\n", encoding="utf-8")
    assert len(_faults(tmp_path / "x.py", "x.py")) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("torch")
    from minglm.training import recipe
    from minglm.training.loop import train

    folder = tmp_path_factory.mktemp("safety") / "run"
    train(recipe.load("ci_pretrain", {"steps": 1}), folder, None, progress=False, device="cpu")
    return folder


def _forge(folder: Path, change) -> Path:
    """The state.json of a checkpoint, changed and with a hash that fits again, as somebody with bad intent would."""
    from minglm.training import checkpoint

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    del state["own_sha256"]
    change(state)
    (folder / "state.json").write_text(checkpoint._with_own_hash(state), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name", ["../../outside.safetensors", "/etc/hostname", "..\\outside.safetensors", "sub/model.safetensors", "..", ""]
)
def test_a_checkpoint_names_only_its_own_files(run, tmp_path, name):
    import shutil

    from minglm.training import checkpoint

    folder = shutil.copytree(checkpoint.find(run)[0], tmp_path / "a" / "b" / "step")
    (tmp_path / "a" / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    _forge(folder, lambda state: state["sha256"].update({name: checkpoint.sha256(folder / "model.safetensors")}))
    with pytest.raises(InputError, match="not one of this checkpoint's own files|missing"):
        checkpoint.read(folder)


def test_a_checkpoint_holds_no_file_that_it_does_not_name(run, tmp_path):
    """A shard slipped in beside the others has no hash, and would be read with them."""
    import shutil

    from minglm.training import checkpoint

    folder = shutil.copytree(checkpoint.find(run)[0], tmp_path / "step")
    (folder / "shard-00009-model-00001-of-00001.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="shard-00009"):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["../weights.safetensors", "/etc/hostname", "..\\w.safetensors", 3, None])
def test_an_index_names_only_files_of_its_folder(tmp_path, name):
    pytest.importorskip("torch")
    from minglm.interop.huggingface import _Checkpoint

    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(InputError, match="not a file of this folder"):
        _Checkpoint(tmp_path)


def test_yaml_makes_no_objects(tmp_path):
    from sim.base.documents import parse_text

    with pytest.raises(InputError):
        parse_text("a: !!python/object/apply:os.getcwd []\n", "x.yaml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_no_listener_beyond_this_machine_without_a_key(host):
    from minglm.serving.config import ServeSettings

    with pytest.raises(InputError, match="so a key is needed"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, api_key="long-enough-key").api_key


def _pins() -> dict[str, str]:
    lines = [x.split("#")[0].strip() for x in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    return {re.sub(r"[-_.]+", "-", n).lower(): v for n, _, v in (x.partition("==") for x in lines if x)}


def test_every_dependency_is_pinned_exactly_and_from_the_index():
    """No range, no URL, no option in the pins, and each direct dependency among them."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert (
            not line.strip()
            or line.startswith("#")
            or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+(\s*;.*)?", line.strip())
        ), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [*project["dependencies"], *(d for part in project["optional-dependencies"].values() for d in part)]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", d)[0]).lower() for d in direct}
    assert names <= set(_pins()), names - set(_pins())


def test_what_is_installed_is_what_is_pinned():
    odd = {}
    for name, version in _pins().items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's, or an extra that was left out
        if found.split("+")[0] != version.split(";")[0].strip().split("+")[0]:
            odd[name] = (found, version)
    assert not odd, odd
