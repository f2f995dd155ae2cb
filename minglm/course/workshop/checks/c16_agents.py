"""Checks of 16: whose tokens count, what an observation may tell, what an episode earns."""

from minglm.course.workshop.checking import Exercise, Mistake

EPISODES = [
    ([("user", [7, 8]), ("assistant", [9])],),
    ([("user", [5]), ("assistant", [6, 7, 1]), ("user", [8, 9]), ("assistant", [6, 1])],),
    ([("user", [4, 4, 4])],),
]


def _counted(turns):
    total = sum(1 + len(tokens) for _, tokens in turns)
    own, at = set(), 0
    for who, tokens in turns:
        if who == "assistant":
            own |= set(range(at + 1, at + 1 + len(tokens)))
        at += 1 + len(tokens)
    return [i in own for i in range(total)]


def _with_markers(turns):
    return [who == "assistant" for who, tokens in turns for _ in range(1 + len(tokens))]


def _last_only(turns):
    last = max((i for i, (who, _) in enumerate(turns) if who == "assistant"), default=-1)
    return _counted([(who if i == last else "user", tokens) for i, (who, tokens) in enumerate(turns)])


def _observation(results):
    wrong = [
        f"{call} gave {got!r}, not {expected!r}" for call, got, expected, shown in results if shown and got != expected
    ]
    return wrong[0] if wrong else ""


def _told(results, seen=lambda r: r[3], pick=0, differ=lambda got, expected: got != expected):
    wrong = [r for r in results if differ(r[1], r[2]) and seen(r)]
    return f"{wrong[pick][0]} gave {wrong[pick][1]!r}, not {wrong[pick][2]!r}" if wrong else ""


TESTS = [
    ([("f(1)", 6, 5, True)],),
    ([("f(1)", 5, 5, True), ("f(2)", 9, 8, True), ("f(3)", 12, 11, True), ("f(9)", 0, 29, False)],),
    ([("f(9)", 0, 29, False), ("f(1)", 7, 5, True)],),
    ([("f(1)", 5, 5, True), ("f(9)", 0, 29, False)],),
    # nothing, 0, too little, an equal number that is another object, a text that looks like the number
    ([("f(2)", None, 5, True)],),
    ([("f(2)", 0, 5, True)],),
    ([("f(2)", 4, 5, True)],),
    ([("f(2)", int("1000"), 1000, True), ("f(3)", 7, 8, True)],),
    ([("f(2)", "5", 5, True)],),
]


def _reward(turns, most=3):
    used = []
    for turn in turns[:most]:
        used.append(turn)
        if turn[0]:
            break
    return (10 - (len(used) - 1)) / 10 if all(used[-1]) else 0.0


OUTCOMES = [
    ([(False, False), (False, False), (False, False), (True, True)],),  # the fourth turn is not played
    ([(True, True)],),
    ([(False, False), (True, True)],),
    ([(False, False), (False, False), (True, True)],),
    ([(True, False), (True, True)],),
    ([(False, False), (False, True), (False, True)],),
    ([(False, True), (True, False)],),
    ([(False, False), (True, True)], 2),
    ([(False, False), (False, False), (True, True)], 2),
]


EXERCISES = [
    Exercise(
        "16.counted",
        _counted,
        lambda: EPISODES,
        (
            Mistake(
                _with_markers,
                "The marker at the start of a turn is put there by the loop: the model never chose it, so it does not "
                "count.",
            ),
            Mistake(
                lambda t: [True] * len(_counted(t)),
                "Observations and prompt were not written by the model. Training on them would teach it to imagine "
                "test results.",
            ),
            Mistake(
                _last_only, "All turns of the model count, not the last one alone: the first try was its doing as well."
            ),
            Mistake(
                lambda t: [who == "assistant" for who, tokens in t for _ in tokens],
                "Each turn begins with a marker, which takes a place of its own in the row.",
            ),
            Mistake(lambda t: [not c for c in _counted(t)], "Upside down: True is for the assistant's tokens."),
        ),
        "For each turn one False for its marker, then True or False for each of its tokens.",
    ),
    Exercise(
        "16.observation",
        _observation,
        lambda: TESTS,
        (
            Mistake(
                lambda r: _told(r, lambda x: True),
                "That tells what a hidden test holds. A model would soon write a program that knows just these values: "
                "look at shown tests only.",
            ),
            Mistake(lambda r: _told(r, pick=-1), "The first one that went wrong is wanted; this is the last."),
            Mistake(
                lambda r: "; ".join(f"{c} gave {g!r}, not {e!r}" for c, g, e, s in r if s and g != e),
                "One is enough: the first shown test that went wrong.",
            ),
            Mistake(
                lambda r: f"{r[0][0]} gave {r[0][1]!r}, not {r[0][2]!r}",
                "That tells of the first test, whether it went wrong and is shown or not.",
            ),
            Mistake(
                lambda r: next((f"{c} gave {g}, not {e}" for c, g, e, s in r if s and g != e), ""),
                "'f(2) gave 5, not 5' tells nobody that the first is a text. Write both values with `!r`.",
            ),
            Mistake(
                lambda r: _told(r, differ=lambda g, e: g and g != e),
                "A program that gave 0 or None was passed over: both count as false in an `if`. Ask only whether got "
                "!= expected.",
            ),
            Mistake(
                lambda r: _told(r, differ=lambda g, e: g is not None and g != e),
                "A program that gave None went wrong too, and must be told: a forgotten `return` is a common slip.",
            ),
            Mistake(
                lambda r: _told(r, differ=lambda g, e: g > e),
                "Too little is as wrong as too much, and None cannot be compared by size: use !=.",
            ),
            Mistake(
                lambda r: _told(r, differ=lambda g, e: g is not e),
                "`is` asks whether two things are the same object; two equal numbers may be two objects. Compare with "
                "!=.",
            ),
        ),
        "The first entry with shown and got != expected, as 'f(1) gave 6, not 5', both values with !r; else an empty "
        "text.",
    ),
    Exercise(
        "16.episode_reward",
        _reward,
        lambda: OUTCOMES,
        (
            Mistake(
                lambda t, most=3: float(_reward(t, most) > 0),
                "Each turn after the first costs 0.1, or a model has no reason to get it right at once.",
            ),
            Mistake(
                lambda t, most=3: max((1 - 0.1 * i) * (a and b) for i, (a, b) in enumerate(t[:most])),
                "The episode ends with the first turn that passes the shown tests, even if the hidden ones fail: there "
                "is no further try, and the best of all tries is not asked for.",
            ),
            Mistake(
                lambda t, most=3: next((1 - 0.1 * i for i, (a, b) in enumerate(t[:most]) if a), 0.0),
                "The hidden tests decide too, or a program that only repeats what it was shown would be paid.",
            ),
            Mistake(
                lambda t, most=3: next(
                    (
                        max(0.0, 1 - 0.1 * (i + 1)) * (a and b)
                        for i, (a, b) in enumerate(t[:most])
                        if a or i == most - 1
                    ),
                    0.0,
                ),
                "The first turn is free: only the turns after it cost 0.1 each.",
            ),
            Mistake(
                lambda t, most=3: _reward(t, 99),
                "No more than `most` turns are played: what would have come after them does not count.",
            ),
            Mistake(
                lambda t, most=3: next(
                    0.9**i * (a and b) for i, (a, b) in enumerate(t) if a or i == most - 1 or i == len(t) - 1
                ),
                "Each turn takes 0.1 off the full reward, not a tenth of what is left: 1, 0.9, 0.8.",
            ),
            Mistake(
                lambda t, most=3: next(
                    (1 - 0.1 * i) * b for i, (a, b) in enumerate(t) if a or i == most - 1 or i == len(t) - 1
                ),
                "In the last turn the shown tests may fail while the hidden ones pass. The program has to pass all of "
                "them.",
            ),
        ),
        "Find the turn that ends the episode; if both of its flags are True it earns 1 − 0.1 · (turns before it), else "
        "0.",
    ),
]
