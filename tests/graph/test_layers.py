"""The conventions of the paper on graphs that are written down by hand, and against a plain search."""

import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.graph.layers import ComparableOp, assign_layers


def chain(word: str, *, parameters: str = "") -> list[ComparableOp]:
    """An input and one operation per letter, each the child of the one before; some letters have parameters."""
    nodes = [ComparableOp(None)]
    for letter in word:
        own = (ord(letter),) if letter in parameters else ()
        nodes.append(ComparableOp(letter, (len(nodes) - 1,), letter, own))
    return nodes


def layers(nodes: Sequence[ComparableOp]) -> list[int]:
    return [place.layer for place in assign_layers(nodes)]


def spelled(word: str, *, parameters: str = "") -> str:
    """Each letter of a chain with its pass, where its layer has several."""
    places = assign_layers(chain(word, parameters=parameters))[1:]
    passes = Counter(place.layer for place in places)
    return " ".join(
        letter + (f":{place.number}" if passes[place.layer] > 1 else "")
        for letter, place in zip(word, places, strict=True)
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("XYZXYZXYZ", "X:1 Y:1 Z:1 X:2 Y:2 Z:2 X:3 Y:3 Z:3"),
        ("XYZAXYZBXYZ", "X Y Z A X Y Z B X Y Z"),
        ("XYZXYZTXYZ", "X:1 Y:1 Z:1 X:2 Y:2 Z:2 T X Y Z"),
        ("XX", "X:1 X:2"),
        ("XYX", "X Y X"),
        ("XXYXXY", "X:1 X:2 Y:1 X:3 X:4 Y:2"),
        ("XXYYXXYY", "X:1 X:2 Y:1 Y:2 X:3 X:4 Y:3 Y:4"),
        ("XXAXX", "X:1 X:2 A X:1 X:2"),
        ("AXYXYB", "A X:1 Y:1 X:2 Y:2 B"),
    ],
)
def test_only_sequences_that_repeat_back_to_back_are_loops(word: str, expected: str) -> None:
    assert spelled(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("CLASCLA", "C:1 L:1 A:1 S C:2 L:2 A:2"),  # the paper's figure: cosine, linear, addition around a sine
        ("LRSLRT", "L:1 R:1 S L:2 R:2 T"),
        ("LRPSLRP", "L:1 R:1 P:1 S L:2 R:2 P:2"),  # a neighbour's neighbour
        ("LRPSLQP", "L:1 R P S L:2 Q P"),  # cut off by a neighbour that differs
        ("RLL", "R L:1 L:2"),
        ("RLLR", "R L:1 L:2 R"),  # before one pass and after the other is not the same side
    ],
)
def test_what_surrounds_shared_parameters_is_shared(word: str, expected: str) -> None:
    assert spelled(word, parameters="L") == expected


def test_different_parameters_make_different_layers() -> None:
    assert spelled("LRMR", parameters="LM") == "L R M R"


def test_shared_parameters_make_one_layer_whatever_the_shapes() -> None:
    nodes = [
        ComparableOp(None),
        ComparableOp(("conv", 8), (0,), "conv", (1, 2)),
        ComparableOp(("conv", 4), (1,), "conv", (1, 2)),
    ]
    assert layers(nodes) == [1, 2, 2]


def test_one_parameter_read_by_two_functions_makes_two_layers() -> None:
    nodes = [
        ComparableOp(None),
        ComparableOp("embedding", (0,), "embedding", (1,)),
        ComparableOp("linear", (1,), "linear", (1,)),
    ]
    assert layers(nodes) == [1, 2, 3]


def test_equal_operations_side_by_side_are_no_loop() -> None:
    assert layers([ComparableOp(None), ComparableOp("relu", (0,)), ComparableOp("relu", (0,))]) == [1, 2, 3]


def test_equal_operations_in_modules_of_their_own_are_no_loop() -> None:
    nodes = [ComparableOp(None), ComparableOp("relu", (0,), module="0"), ComparableOp("relu", (1,), module="1")]
    assert layers(nodes) == [1, 2, 3]


def test_inputs_stay_apart() -> None:
    encoder = [ComparableOp("linear", (0,), "linear", (1,)), ComparableOp("linear", (1,), "linear", (1,))]
    assert layers([ComparableOp(None), ComparableOp(None), *encoder]) == [1, 2, 3, 3]


def test_a_recurrence_over_time_is_found_though_each_step_reads_another_slice() -> None:
    nodes = [ComparableOp(None), ComparableOp("zeros")]
    state = 1
    for t in range(4):
        nodes.append(ComparableOp(("select", t), (0,)))
        nodes.append(ComparableOp("add", (state, len(nodes) - 1)))
        nodes.append(ComparableOp("tanh", (len(nodes) - 1,)))
        state = len(nodes) - 1
    assert layers(nodes) == [1, 2, 3, 4, 5, 6, 4, 5, 7, 4, 5, 8, 4, 5]


def test_a_body_with_branches_and_noise_is_shared_whole() -> None:
    nodes = [ComparableOp(None)]
    state = 0
    for _ in range(3):
        first = len(nodes)
        nodes += [
            ComparableOp("cos", (state,)),
            ComparableOp("sin", (state,)),
            ComparableOp("randn"),
            ComparableOp("mul", (first, first + 1)),
        ]
        nodes += [ComparableOp("add", (first + 3, first + 2))]
        state = first + 4
    assert layers(nodes) == [1, *[2, 3, 4, 5, 6] * 3]


def test_a_sum_of_different_things_is_no_loop() -> None:
    nodes = [
        ComparableOp(None, function="input"),
        ComparableOp("buffer", function="buffer"),
        ComparableOp("relu", (0,), "relu"),
    ]
    nodes += [ComparableOp("add", (2, 1), "add"), ComparableOp("add", (3, 0), "add")]
    assert layers(nodes) == [1, 2, 3, 4, 5]


def test_a_running_sum_is_a_loop() -> None:
    nodes = [ComparableOp(None, function="input"), ComparableOp("zeros", (), "zeros")]
    for t in range(4):
        nodes += [ComparableOp(("select", t), (0,), "select"), ComparableOp("add", (len(nodes) - 1, len(nodes)), "add")]
    assert layers(nodes)[3::2] == [4, 4, 4, 4]


def test_neighbours_that_are_alike_correspond_by_rank() -> None:
    nodes = [ComparableOp(None)]
    for _ in range(2):
        shared = len(nodes)
        nodes += [
            ComparableOp("linear", (shared - 1,), "linear", (1,)),
            ComparableOp("relu", (shared,)),
            ComparableOp("relu", (shared,)),
        ]
        nodes += [ComparableOp("sub", (shared + 1, shared + 2))]
    assert layers(nodes) == [1, 2, 3, 4, 5, 2, 3, 4, 5]


def path_to(nodes: Sequence[ComparableOp], last: int) -> list[int]:
    """The longest path to a node, backwards."""
    depth: list[int] = []
    for node in nodes:
        depth.append(1 + max((depth[p] for p in node.parents), default=0))
    path = [last]
    while nodes[path[-1]].parents:
        path.append(max(nodes[path[-1]].parents, key=depth.__getitem__))
    return path


def neighbours(nodes: Sequence[ComparableOp], i: int) -> dict[Any, int]:
    places: dict[Any, int] = {}
    seen: Counter[Any] = Counter()
    children = [j for j, node in enumerate(nodes) if i in node.parents]
    for side, others in (("parent", nodes[i].parents), ("child", children)):
        for other in others:
            same = nodes[other].same or other
            places[side, same, seen[side, same]] = other
            seen[side, same] += 1
    return places


def others(nodes: Sequence[ComparableOp], i: int, before: Sequence[int]) -> list[Any]:
    """What a node's parents are, but for the one before it on the path."""
    return [(nodes[p].function, nodes[p].parameters) for p in nodes[i].parents if p not in before]


def repeats(nodes: Sequence[ComparableOp], path: Sequence[int], period: int) -> bool:
    """Whether the end of a path repeats itself with a period."""
    kinds = [(nodes[k].same or k, nodes[k].module) for k in path]
    if period == 1 and others(nodes, path[0], path[1:2]) != others(nodes, path[1], path[2:3]):
        return False
    if period > 1 and len(set(kinds[:period])) == 1:
        return False  # nothing but one operation again and again, which period 1 has judged
    return kinds[:period] == kinds[period : 2 * period]


def by_plain_search(nodes: Sequence[ComparableOp]) -> list[tuple[int, int]]:
    """The conventions as they read, without any care for time."""
    group = list(range(len(nodes)))

    def join(a: int, b: int) -> bool:
        old, new = group[b], group[a]
        group[:] = [new if g == old else g for g in group]
        return old != new

    for i, node in enumerate(nodes):
        for j in range(i):
            if node.parameters and (node.function, node.parameters) == (nodes[j].function, nodes[j].parameters):
                join(j, i)
        path = path_to(nodes, i)
        for period in range(1, len(path) // 2 + 1):
            if repeats(nodes, path, period):
                for k in range(period):
                    join(path[k + period], path[k])
    places = [neighbours(nodes, i) for i in range(len(nodes))]
    while any(
        [
            join(places[i][where], places[j][where])
            for i in range(len(nodes))
            for j in range(i)
            if group[i] == group[j]
            for where in places[i].keys() & places[j].keys()
        ]
    ):
        pass
    numbers: dict[int, int] = {}
    passes: Counter[int] = Counter()
    found = []
    for g in group:
        layer = numbers.setdefault(g, len(numbers) + 1)
        passes[layer] += 1
        found.append((layer, passes[layer]))
    return found


@st.composite
def graphs(draw: st.DrawFn) -> list[ComparableOp]:
    nodes = [ComparableOp(None)]
    for i in range(1, draw(st.integers(2, 22))):
        parents = (i - 1, *draw(st.lists(st.integers(0, i - 1), max_size=1)))
        if draw(st.integers(0, 7)) == 0:
            parents = tuple(draw(st.lists(st.integers(0, i - 1), max_size=2)))
        letter = draw(st.sampled_from("XXXYYZP"))
        nodes.append(ComparableOp(letter, parents, letter, (1,) if letter == "P" else ()))
    return nodes


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_layers_are_those_of_a_plain_search(nodes: list[ComparableOp]) -> None:
    assert [tuple(place) for place in assign_layers(nodes)] == by_plain_search(nodes)


@settings(max_examples=60, deadline=None)
@given(st.text("XYZ", min_size=1, max_size=30))
def test_chains_are_those_of_a_plain_search(word: str) -> None:
    nodes = chain(word)
    assert [tuple(place) for place in assign_layers(nodes)] == by_plain_search(nodes)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_passes_count_up_in_order_of_execution(nodes: list[ComparableOp]) -> None:
    passes: Counter[int] = Counter()
    for place in assign_layers(nodes):
        passes[place.layer] += 1
        assert place.number == passes[place.layer]
    assert list(dict.fromkeys(place.layer for place in assign_layers(nodes))) == list(range(1, len(passes) + 1))


def lines_run(nodes: list[ComparableOp]) -> int:
    """How many lines of Python it takes."""
    count = 0

    def count_lines(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return count_lines

    before = sys.gettrace()
    sys.settrace(count_lines)
    try:
        assign_layers(nodes)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("word", ["X", "XYZ", "XXYXXYZ", "PXYPZ"])
def test_the_work_grows_like_n_log_n(word: str) -> None:
    small, large = (lines_run(chain((word * n)[:n], parameters="P")) for n in (500, 2000))
    assert large < small * 4 * 1.4  # log 2000 / log 500 is 1.22


def test_ten_thousand_operations_are_no_matter() -> None:
    places = assign_layers(chain("XYZ" * 3334))
    assert (places[-1].layer, places[-1].number) == (4, 3334)
