"""The tiny world: texts agree with their state, probabilities with hand and simulation; what training never shows."""

import math
import random
import re
from collections import Counter

import pytest
import torch

from minglm.data.shards import IGNORE
from minglm.data.synthetic_facts import ADJECTIVES, ANIMALS
from minglm.data.tiny_world import documents, floor, pairs, recall, residents, story
from minglm.data.tiny_world.checking import Checked, check
from minglm.data.tiny_world.grammar import KINDS, Reader, fits, write
from minglm.data.tiny_world.held_out import is_held_out
from minglm.data.tiny_world.lexicon import FAMILY, GIVEN, MEN, WOMEN
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.vocabulary import text_of, token_ids, tokenizer
from minglm.errors import InputError

ALL = documents.DOCUMENT_KINDS


def drawn(kind, seed, held_out=None):
    return write(ALL[kind], random.Random(f"test {seed}"), held_out)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_written_is_read_back_token_by_token_and_kind_by_kind(kind):
    for seed in range(20):
        written = drawn(kind, seed)
        reader = Reader(ALL[kind])
        assert all(reader.step(t) > 0 for t in written.tokens)
        assert reader.may_end and reader.kinds == written.kinds


@pytest.mark.parametrize("kind", ALL)
def test_every_word_is_one_token_and_text_comes_back(kind):
    written = drawn(kind, 3)
    text, ids = text_of(written.tokens), token_ids()
    assert tokenizer().encode(text) == [ids[t] for t in written.tokens]
    assert tokenizer().decode(tokenizer().encode(text)) == text


@pytest.mark.parametrize("text", ["", " two  spaces", "a_b2x", "naïve 漢字\n\n  end", 'say "so" (now)\tthen', "2+2"])
def test_any_other_text_encodes_and_comes_back(text):
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_probabilities_of_a_small_page_against_hand():
    # 90% of the sums have two digits (first digit 1 to 9), 10% one (0 to 9); a page goes on with 85%.
    page = [
        "Sums",
        "\n",
        *"What is _ 2 + 3 ? _ 2 + 3 + 0 = 0 5 : _ 5 .".split(),
        *"What is _ 2 4 + 3 5 ? _ 4 + 5 + 0 = 0 9 , _ 2 + 3 + 0 = 0 5 : _ 5 9 . Done .".split(),
    ]
    nats = floor.score(page, {"sums": 1.0}).nats
    two = 0.1 * 0.1 + 0.9 / 9
    expected = {
        5: two,
        6: 0.1 * 0.1 / two,
        7: 0.1,
        22: 0.85,
        25: two,
        26: 0.9 / 9 / two * 0.1,
        28: 1 / 9,
        29: 0.1,
        55: 0.15,
    }
    assert {i for i, n in enumerate(nats) if n > 1e-9} == set(expected)
    for i, p in expected.items():
        assert nats[i] == pytest.approx(-math.log(p)), page[i]


def test_columns_add_up_and_the_sum_is_read_off_them():
    """By plain arithmetic on the text: every column of a page, carried on into the next, gives the sum."""
    seen = 0
    for seed in range(30):
        for a, b, c, two in re.findall(r"(\d)\+(\d)\+(\d)=(\d\d)", text_of(drawn("columns", seed).tokens)):
            assert int(a) + int(b) + int(c) == int(two) and c in "01"
            seen += 1
        worked = r"What is (\d)(\d)\+(\d)(\d)\? (\d)\+(\d)\+0=(\d)(\d), (\d)\+(\d)\+(\d)=(\d)(\d): (\d+)\."
        for m in re.findall(worked, text_of(drawn("sums", seed).tokens)):
            a, b, c, d, b2, d2, carry, units, a2, c2, carried, hundreds, tens = map(int, m[:13])
            assert (b2, d2, a2, c2, carried) == (b, d, a, c, carry)
            assert 10 * carry + units == b + d and 10 * hundreds + tens == a + c + carry
            assert int(m[13]) == 10 * a + b + 10 * c + d
            seen += 1
    assert seen > 200


def test_a_prompt_that_ends_with_a_line_is_the_beginning_of_the_page():
    for kind in ALL:
        written = drawn(kind, 1)
        title = written.tokens[: written.tokens.index("\n") + 1]
        assert tokenizer().encode(text_of(title)) == [token_ids()[t] for t in title]


@pytest.mark.parametrize("kind", ["story", "codes", "questions", "cards"])
def test_the_first_tokens_come_as_often_as_their_probability_says(kind):
    """The reader's distribution against a simulation: how often each token follows the commonest prefix."""
    many = [tuple(drawn(kind, seed).tokens[:4]) for seed in range(4000)]
    prefix = Counter(m[:3] for m in many).most_common(1)[0][0]
    follow = Counter(m[3] for m in many if m[:3] == prefix)
    total = sum(follow.values())
    for token, count in follow.items():
        reader = Reader(ALL[kind])
        p = [reader.step(t) for t in (*prefix, token)][-1]
        assert abs(count - total * p) < 5 * math.sqrt(total * p * (1 - p)) + 1, (token, count, total * p)


def test_the_floor_is_no_higher_than_the_cost_under_any_other_mixture():
    texts = [documents.draw(random.Random(f"{i}"), documents.MIXTURE, None)[1].tokens for i in range(300)]
    own = sum(sum(floor.score(t).nats) for t in texts)
    skewed = {k: v * (3 if k == "story" else 1) for k, v in documents.MIXTURE.items()}
    assert own < sum(sum(floor.score(t, skewed).nats) for t in texts)


def test_text_that_the_language_cannot_write_has_no_floor():
    page = drawn("sums", 1).tokens
    wrong = page.index("?") + 2  # the answer's first digit
    page[wrong] = str((int(page[wrong]) + 1) % 10)
    with pytest.raises(InputError, match="known for its own text only"):
        floor.score(page)
    with pytest.raises(InputError, match="before its end"):
        floor.score(drawn("sums", 1).tokens[:-1])


def world_of(text):
    """An independent reading of a story: who is where and who has what, by regular expressions."""
    people, room, colour, has, moved, actor = [], None, {}, {}, None, None
    for line in re.findall(r"[^.?]+[.?]", text.split("\n", 1)[1]):
        line = line.strip()
        if m := re.fullmatch(r"(\w+) and (\w+) are in the (\w+)\.", line):
            people, room = [m[1], m[2]], m[3]
        elif m := re.fullmatch(r"The (\w+) is (\w+) and lies in the (\w+)\.", line):
            yield m[1] not in colour and m[3] == room
            colour[m[1]] = m[2]
        elif m := re.fullmatch(r"The (\w+) is in the (\w+)\.", line):
            yield m[1] in colour and m[2] == room
        elif m := re.fullmatch(r"([A-Z]\w+) is in the (\w+)\.", line):
            yield m[2] == room and (m[1] in people or len(people) == 2)
            people = [*people, m[1]] if m[1] not in people else people
        elif m := re.fullmatch(r"They carry everything to the (\w+)\.", line):
            yield room != m[1]
            room, moved, actor = m[1], None, None
        elif m := re.fullmatch(r"(\w+) takes the (\w+)\.", line):
            yield m[1] in people and m[2] in colour and has.get(m[2]) != m[1]
            has[m[2]] = actor = m[1]
            moved = m[2]
        elif m := re.fullmatch(r"(\w+) puts the (\w+) down\.", line):
            yield has.pop(m[2]) == m[1] and moved == m[2]
            moved, actor = None, m[1]
        elif m := re.fullmatch(r"(\w+) gives the (\w+) to (\w+)\.", line):
            yield has[m[2]] == m[1] != m[3] in people and moved == m[2]
            has[m[2]], actor = m[3], m[1]
        elif m := re.fullmatch(r"(\w+) has the (\w+)\.", line):
            yield has.get(m[2], "Nobody") == m[1] and m[2] in colour
            moved = actor = None
        elif m := re.fullmatch(r"(\w+) sees that the (\w+) is (\w+)\.", line):
            yield m[1] in people and colour[m[2]] == m[3]
            moved, actor = None, m[1]
        elif m := re.fullmatch(r"(She|He) is (\w+)\.", line):
            yield actor in (WOMEN if m[1] == "She" else MEN)
        elif m := re.fullmatch(r"The (\w+) is (\w+)\.", line):
            yield colour[m[1]] == m[2]
        elif line.endswith("?"):
            moved = actor = None
        else:
            assert re.match(r"It is a |The end", line), line


def test_stories_agree_with_their_state():
    checks = [ok for seed in range(60) for ok in world_of(text_of(drawn("story", seed).tokens))]
    assert len(checks) > 500 and all(checks)


def test_a_sentence_may_be_grammar_without_being_true():
    sentence = "Mira takes the lamp .".split()
    assert fits(story.TEMPLATES, sentence) and fits(story.TEMPLATES, "Mira takes lamp the .".split()) is None
    reader = Reader(story.STORY)
    for token in "Story \n It is a".split(" "):
        assert reader.step(token) > 0
    assert reader.step("lamp") == 0


def combinations(written):
    """Held-out combinations that a document holds: full names and codes anywhere, sums and comparisons."""
    text = text_of(written.tokens)
    words = written.tokens
    pairs = list(zip(words, words[1:], strict=False))
    known = {(name, facts["family"]) for name, facts in residents.residents().items()}
    names = [p for p in pairs if p[0] in GIVEN and p[1] in FAMILY and p not in known]
    three = [f"name:{a} {b} {c}" for a, (b, c) in zip(words, pairs[1:], strict=False) if a in GIVEN and (b, c) in names]
    two = [
        f"name:{a} {b}"
        for before, (a, b) in zip(["", *words], pairs, strict=False)
        if (a, b) in names and before not in GIVEN
    ]
    codes = [f"code:{a} {b}" for a, b in pairs if a in ADJECTIVES and b in ANIMALS]
    sums = [f"sum:{a} {b}" for a, b in re.findall(r"What is (\d\d)\+(\d\d)\?", text)]
    return three + two + codes + sums


def test_training_never_shows_a_held_out_combination_and_tests_show_nothing_else():
    for kind in ("codes", "passage", "sums", "questions"):
        training = [c for seed in range(60) for c in combinations(drawn(kind, seed, False))]
        assert training and not any(map(is_held_out, training)), kind
    for kind in ("codes", "sums"):
        tests = [c for seed in range(20) for c in combinations(drawn(kind, seed, True))]
        assert tests and all(map(is_held_out, tests)), kind
    anything = [is_held_out(c) for seed in range(100) for c in combinations(drawn("codes", seed))]
    assert 0.1 < sum(anything) / len(anything) < 0.3


def test_answers_to_codes_are_the_facts_of_the_text():
    for seed in range(80):
        written = drawn("codes", seed)
        text = text_of(written.tokens)
        if text.startswith("Codes"):
            facts, asked = text.split("Now tell me. ")
            told = set(re.findall(r"We call [^.?]+\.", facts))
            answers = [text_of(written.tokens[a:b]) for a, b in written.answers]
            unknown = [a for a in answers if a.startswith("I do not know ")]
            assert set(answers) - set(unknown) == told and len(told) <= recall.MOST_FACTS
            assert asked.count("?") == len(told) + len(unknown)
            assert not any(re.search(rf"We call {a[14:-1]} [a-z]", facts) for a in unknown)


def test_batches_follow_the_step_alone_and_the_floor_counts_what_the_batch_counts():
    one, two = TinyWorldLoader(4, 96, seed=5), TinyWorldLoader(4, 96, seed=5)
    one.batch(0)
    assert all(torch.equal(a, b) for a, b in zip(one.batch(7), two.batch(7), strict=True))
    assert not torch.equal(one.batch(7).tokens, TinyWorldLoader(4, 96, seed=6).batch(7).tokens)
    valid = TinyWorldLoader(4, 96, seed=5, validation=True)
    batch, known = valid.batch(0), valid.floor(0)
    assert torch.equal(known.kinds >= 0, batch.targets != IGNORE)
    assert 0.4 < float(known.nats[known.kinds >= 0].mean()) < 1.2
    assert {KINDS[int(k)] for k in known.kinds[known.kinds >= 0].unique()} <= set(KINDS)


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ({"storys": 1.0}, "story"),
        ({"story": -1.0}, "at least 0"),
        ({}, "no kind of document"),
        ({"story": "x"}, "number"),
    ],
)
def test_impossible_mixtures_are_refused_in_one_line(mixture, says):
    with pytest.raises(InputError, match=says) as err:
        TinyWorldLoader(2, 64, mixture=mixture)
    assert "\n" not in str(err.value)


def test_checker_accepts_what_is_written_and_finds_what_is_swapped():
    swapped = Counter()
    for seed in range(40):
        tokens = drawn("story", seed).tokens
        whole = check(story.STORY, tokens)
        assert whole.sentences == whole.grammatical == whole.consistent == len(drawn("story", seed).starts)
        # another object in every "takes" sentence: grammar, and never true
        other = [("violin" if b == "takes" else t) for b, t in zip(["", "", *tokens], tokens, strict=False)]
        if "violin" not in tokens and "takes" in tokens:
            said = check(story.STORY, other)
            assert said.grammatical == said.sentences
            swapped.update(consistent=said.consistent, sentences=said.sentences)
        broken = check(story.STORY, [t for t in tokens if t != "the"])
        assert broken.grammatical < broken.sentences
    assert swapped["consistent"] < 0.9 * swapped["sentences"]


def test_a_true_story_is_right_wherever_it_is_cut_and_wrong_where_its_writer_breaks_off():
    for seed in range(2):
        written = drawn("story", seed)
        for length in range(1, len(written.tokens) + 1):
            told = written.tokens[:length]
            whole = sum(end <= length for end in (*written.starts[1:], len(written.tokens)))
            assert check(story.STORY, told, ended=False) == Checked(whole, whole, whole), told
            broken_off = length not in (*written.starts, len(written.tokens))
            assert check(story.STORY, told).grammatical == whole
            assert (check(story.STORY, told).sentences > whole) == broken_off, told


def test_a_slip_just_before_a_cut_still_counts():
    begun = ["Story", "\n", *"It is a hot night in Ambry . Where is the".split(" ")]
    assert check(story.STORY, begun, ended=False) == Checked(2, 2, 2)
    assert check(story.STORY, [*begun, "sleepy"], ended=False) == Checked(3, 2, 2)  # no sentence goes on like that


def test_sentences_in_another_order_stay_grammar_and_lose_their_truth():
    kept = total = 0
    for seed in range(40):
        written = drawn("story", seed)
        bounds = [*written.starts, len(written.tokens)]
        parts = [written.tokens[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        body = parts[1:-1]
        random.Random(seed).shuffle(body)
        said = check(story.STORY, [t for part in (parts[0], *body, parts[-1]) for t in part])
        assert said.grammatical == said.sentences
        kept, total = kept + said.consistent, total + said.sentences
    assert kept < 0.6 * total


@pytest.mark.parametrize("lesson", [pairs.FIRST, pairs.GROWING])
def test_pairs_count_exactly_the_values_whose_key_came_before(lesson):
    """Every counted token follows an earlier place of its stream whose last tokens are the same: it can be known."""
    for seed in range(30):
        ids, counted = pairs.stream(random.Random(seed), lesson, 64)
        assert len(ids) == len(counted) == lesson.length + 1 and sum(counted) >= 4
        assert set(ids[1:]) <= set(pairs.word_ids()[:64])
        after = {}
        for t in range(1, len(ids)):
            known = after.get(ids[t - 1])
            assert not counted[t] or known == ids[t]
            if lesson is pairs.FIRST:
                assert counted[t] == (t % 2 == 0 and known == ids[t])
            after[ids[t - 1]] = ids[t]


def test_pairs_come_first_then_half_then_documents_alone():
    base = TinyWorldLoader(2, 132, seed=3)
    loader = pairs.PairsThenDocuments(base, 64, 2, 4)
    batch = loader.batch(0)
    assert set(batch.tokens.flatten().tolist()) <= {0, *pairs.word_ids()[:64], tokenizer().pad}
    assert sorted(set(batch.doc_start[0].tolist())) == [0, 33, 66, 99]  # streams, each alone
    assert [loader.words_at(s) for s in (1, 2, 3, 4)] == [
        64,
        round((64 * len(token_ids())) ** 0.5),
        *[len(token_ids())] * 2,
    ]
    assert torch.equal(loader.batch(3).tokens[1], base.batch(1).tokens[0])
    assert torch.equal(loader.batch(6).tokens, base.batch(4).tokens)
    with pytest.raises(InputError, match="use 64"):
        pairs.PairsThenDocuments(base, 8, 2, 1)
    with pytest.raises(InputError, match="rows of 64"):
        pairs.PairsThenDocuments(TinyWorldLoader(2, 32), 64, 2, 1)


def test_a_story_about_what_it_does_not_have_is_judged_and_breaks_nothing():
    """A model's story takes, puts down and gives things that nobody placed: untrue, and what follows is judged too."""
    names, things, places = story.CAST, story.PROPS, story.ROOMS
    rng = random.Random(0)

    def sentence() -> str:
        who, other, thing, place = rng.choice(names), rng.choice(names), rng.choice(things), rng.choice(places)
        return rng.choice(
            (
                f"{who} and {other} are in the {place} .",
                f"{who} is in the {place} .",
                f"The {thing} is {rng.choice(story.COLOURS)} and lies in the {place} .",
                f"They carry everything to the {place} .",
                f"{who} takes the {thing} .",
                f"{who} puts the {thing} down .",
                f"{who} gives the {thing} to {other} .",
                f"{who} sees that the {thing} is {rng.choice(story.COLOURS)} .",
                "She is calm .",
            )
        )

    for seed in range(300):
        tokens = list(drawn("story", seed).tokens)
        ends = [i + 1 for i, token in enumerate(tokens) if token == "."]
        text = tokens[: ends[rng.randrange(4, len(ends))]] + " ".join(sentence() for _ in range(8)).split()
        judged = check(story.STORY, text)
        assert judged.consistent <= judged.grammatical <= judged.sentences, text


_OPENING = (
    "It is a warm night in Fernay .",
    "Ada and Mira are in the hall .",
    "Vera is in the hall .",
    "The bell is red and lies in the hall .",
    "The key is blue and lies in the hall .",
    "The rope is red and lies in the hall .",
)
_REST = (
    "Ada takes the bell .",
    "Ada gives the bell to Mira .",
    "Who has the bell ? Mira has the bell .",
    "Which colour has the rope ? The rope is red .",
    "The end .",
)


@pytest.mark.parametrize(
    ("number", "instead", "wrong"),
    [
        (2, "Ada is in the hall .", 1),  # somebody who is there already
        (2, "Vera is in the attic .", 1),  # not where the others are
        (2, None, 1),  # nobody: the sentence after it comes too early, and no other
        (4, "The bell is blue and lies in the hall .", 1),  # a second bell instead of a key
        (5, "The key is red and lies in the hall .", 2),  # no rope: this, and the question about it
        (5, None, 2),  # no rope: the next sentence comes too early, and the question about it
        (3, None, 4),  # no bell: the next, and all three about it
        (6, "Odo takes the bell .", 2),  # not there: nor may Ada give it on; once she did, Mira has it
        (7, "Ada gives the bell to Ada .", 2),  # not to herself: then Mira does not have it
        (7, "Mira gives the bell to Vera .", 2),  # who does not have it; she gave it on all the same
        (8, "Who has the bell ? Ada has the bell .", 1),
        (8, "Who has the bell ? Nobody has the bell .", 1),
        (9, "Which colour has the rope ? The rope is blue .", 1),
        (9, "She is happy .", 1),  # nobody that she could be
    ],
)
def test_a_slip_of_a_story_counts_where_it_stands_and_where_it_matters(number, instead, wrong):
    """Sentences counted by hand: what follows a slip is judged by the facts, not by what should have been said."""
    told = list(_OPENING + _REST)
    text = lambda lines: ["Story", "\n", *" ".join(lines).split(" ")]  # noqa: E731
    assert check(story.STORY, text(told)).consistent == len(told) + 1
    told[number : number + 1] = [instead] if instead else []
    judged = check(story.STORY, text(told))
    assert judged.grammatical == judged.sentences == len(told) + 1
    assert judged.sentences - judged.consistent == wrong


def test_stories_have_one_of_each_group_and_what_is_moved_is_what_was_taken_last():
    for seed in range(60):
        text = text_of(drawn("story", seed).tokens)
        for group in story.CASTS:
            assert len(set(re.findall(rf"\b({'|'.join(group)})\b", text))) == 1
        for group in story.PROP_GROUPS:
            assert len(set(re.findall(rf"\b({'|'.join(group)})\b", text))) == 1
