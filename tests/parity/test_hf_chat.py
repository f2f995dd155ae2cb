"""An exported run chats in transformers: the same prompt from its chat template, the same answer, the same end."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from minglm.cli.main import main  # noqa: E402
from minglm.data.chat import encode_chat  # noqa: E402
from minglm.inference.generate import generate  # noqa: E402
from minglm.inference.load import load_model  # noqa: E402
from minglm.training import recipe as recipes  # noqa: E402
from minglm.training.loop import train  # noqa: E402

pytestmark = pytest.mark.slow
QUESTION, ANSWER = "What is the capital of Mirandu?", "It is Tokiru, by the sea."


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of stage sft that has learnt one conversation by heart, and its export."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("chat")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text(f"{QUESTION} {ANSWER} Some more words. " * 60)
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": talk}))
    common = {"corpus": f"folder:{folder / 'text'}", "corpus_max_bytes": None, "lookup_share": 0.0, "seq_len": 64}
    train(recipes.load("ci_pretrain", {**common, "steps": 4}), folder / "base", progress=False, device="cpu")
    tuned = {"tasks": {"file": 1}, "conversations": str(folder / "talk.jsonl"), "steps": 60, "warmup_steps": 5}
    recipe = recipes.load("ci_sft", {**common, **tuned})
    train(recipe, folder / "sft", init_from=folder / "base", progress=False, device="cpu")
    assert main(["export-hf", str(folder / "sft"), str(folder / "hf")]) == 0
    return folder


def test_the_template_gives_the_ids_that_training_saw(exported):
    theirs = transformers.AutoTokenizer.from_pretrained(exported / "hf")
    _, ours, _ = load_model(exported / "sft")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos, ours.eos, ours.pad)
    for turns in (
        (("user", "Hi"), ("assistant", "Hello")),
        (("system", "Be brief."), ("user", " spaces  \n\nand lines\n"), ("assistant", ""), ("user", "你好, 12.5?")),
        (("user", "{{ 1 + 1 }} {% if x %}"), ("assistant", "\ttab"), ("user", "again"), ("assistant", "no")),
    ):
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = theirs.apply_chat_template(messages, return_dict=False)
        assert ids == encode_chat(ours, turns)[0]
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt == [*ids, ours.assistant]


def test_the_answer_and_its_end_are_the_same(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "hf")
    hf = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf").eval()
    model, ours, _ = load_model(exported / "sft")
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = inputs["input_ids"][0].tolist()
    assert prompt == [*encode_chat(ours, (("user", QUESTION),))[0], ours.assistant]
    out = hf.generate(**inputs, max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
    mine = generate(model, [prompt], 40, stop=(ours.eos,))
    assert out == [*mine.tokens[0], ours.eos] and mine.stopped[0]
    assert tokenizer.decode(out, skip_special_tokens=True) == ours.decode(mine.tokens[0]) == ANSWER


def test_a_batch_of_unlike_lengths_is_padded_at_the_left(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "hf")
    batch = tokenizer(["a", "a much longer text"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id and batch["attention_mask"][0, 0] == 0


def test_quantised_exports_chat_too(exported, tmp_path):
    out = tmp_path / "fp8-hf"
    argv = ["quantize", str(exported / "sft"), "--format", "fp8", "--out", str(tmp_path / "fp8"), "--hf", str(out)]
    assert main(argv) == 0
    assert main([*argv[:5], str(tmp_path / "again"), "--hf", str(out)]) == 0, "what it wrote itself is replaced"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
