"""XGBoost's boosters inside a stored model: their model as UBJSON, checked before it is loaded.

XGBoost's own state of a booster (what pickle would hold) is a memory image: it is not promised to
be read by another version, and it holds the device and the threads of the machine. Here a booster
is what `Booster.save_raw("ubj")` gives, which later versions read and which says nothing of the
machine.

XGBoost follows indices in it unchecked, so `checked` looks at everything that is followed: the
nodes of trees, features, classes, categories, sizes. What it does not know is refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from mlops_assets.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    from xgboost import Booster

_MOST_FEATURES = 1_000_000  # XGBoost reserves memory for each of them
_MOST_OUTPUTS = 100_000
_MOST_CATEGORIES = 1 << 24  # XGBoost's own limit
_MOST_NESTED = 20  # categories in a tree in the booster of a dart are 9 deep
_NO_PARENT = (-1, 2**31 - 1)

_ARRAY_TYPES = {"i": "i1", "U": "u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_SCALARS = {"i": ">b", "U": ">B", "I": ">h", "l": ">i", "L": ">q", "d": ">f", "D": ">d"}
_CONSTANTS = {"T": True, "F": False, "Z": None}

_OF_NODES = {
    "base_weights": "d",
    "default_left": "U",
    "left_children": "l",
    "loss_changes": "d",
    "parents": "l",
    "right_children": "l",
    "split_conditions": "d",
    "split_indices": "l",
    "split_type": "U",
    "sum_hessian": "d",
}
"""Arrays of a tree with an item for each node, and their types."""
_OF_CATEGORIES = {
    "categories": "l",
    "categories_nodes": "l",
    "categories_segments": "L",
    "categories_sizes": "L",
}


def load_booster(content: bytes) -> Booster:
    """Make a booster, on the processor, of what `model_of` gave.

    Raises
    ------
    StoreError
        XGBoost cannot load it, or not safely.
    """
    from xgboost import Booster
    from xgboost.core import XGBoostError

    try:
        return Booster(model_file=bytearray(checked(content)))
    except XGBoostError as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"holds an XGBoost model that XGBoost refuses: {reason}") from error


def model_of(state: bytes) -> bytes:
    """Return the model, as UBJSON, of a booster's state.

    Raises
    ------
    StoreError
        It is of a kind that could not be loaded again.
    """
    from xgboost import Booster

    booster = Booster()
    booster.__setstate__({"handle": bytearray(state)})
    return checked(bytes(booster.save_raw("ubj")))


def checked(content: bytes) -> bytes:
    """Return a booster's UBJSON if XGBoost can load it, and predict with it, without harm.

    Raises
    ------
    StoreError
        It is damaged, or of a kind that is not known here.
    """
    try:
        _check_learner(_Reader(content).read()["learner"])
    except StoreError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        _refuse(f"it is not built like one ({type(error).__name__}: {error})")
    return content


# --- UBJSON -------------------------------------------------------------------------------------


class _Reader:
    """The part of UBJSON that XGBoost writes. Typed arrays become NumPy's, others lists."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self) -> dict[str, Any]:
        """Return the object that is all of the content."""
        value = self._value(0)
        if self._at != len(self._content) or not isinstance(value, dict):
            _refuse("it is not one UBJSON object")
        return value

    def _value(self, depth: int) -> Any:
        if depth > _MOST_NESTED:
            _refuse("it is nested too deeply")
        kind = self._letter()
        if kind == "{":
            return self._object(depth)
        if kind == "[":
            return self._array(depth)
        if kind == "S":
            return self._text()
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        return self._scalar(_SCALARS[kind])

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._skip("}"):
            name = self._text()
            if name in found:
                _refuse(f"it has {name} twice")
            found[name] = self._value(depth + 1)
        return found

    def _array(self, depth: int) -> Any:
        if self._skip("$"):
            return self._numbers()
        found = []
        if self._skip("#"):
            for _ in range(self._size()):
                found.append(self._value(depth + 1))
        else:
            while not self._skip("]"):
                found.append(self._value(depth + 1))
        return found

    def _numbers(self) -> np.ndarray:
        import numpy as np

        kind = np.dtype(_ARRAY_TYPES[self._letter()])
        if not self._skip("#"):
            _refuse("an array has no length")
        size = self._size()
        return np.frombuffer(self._bytes(size * kind.itemsize), kind)

    def _text(self) -> str:
        return self._bytes(self._size()).decode()

    def _size(self) -> int:
        if not self._skip("L"):
            _refuse("a length is no whole number")
        size: int = self._scalar(">q")
        return size

    def _scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _letter(self) -> str:
        return chr(self._bytes(1)[0])

    def _skip(self, letter: str) -> bool:
        is_next = self._content[self._at : self._at + 1] == letter.encode()
        self._at += is_next
        return is_next

    def _bytes(self, size: int) -> bytes:
        if not 0 <= size <= len(self._content) - self._at:
            _refuse("it ends too early")
        self._at += size
        return self._content[self._at - size : self._at]


# --- what XGBoost follows -----------------------------------------------------------------------


def _check_learner(learner: dict[str, Any]) -> None:
    shape = learner["learner_model_param"]
    features = _whole(shape["num_feature"], 0, _MOST_FEATURES)
    classes = _whole(shape["num_class"], 0, _MOST_OUTPUTS)
    outputs = max(classes, _whole(shape.get("num_target", "1"), 0, _MOST_OUTPUTS), 1)
    base = json.loads(shape["base_score"])
    bases = base if isinstance(base, list) else [base]
    _require(len(bases) in (1, outputs), "base_score")
    _require(all(math.isfinite(float(one)) for one in bases), "base_score")
    softmax = learner["objective"].get("softmax_multiclass_param")
    _require(softmax is None or int(softmax["num_class"]) == classes, "num_class")
    for name in ("feature_names", "feature_types"):
        texts = learner[name]
        _require(len(texts) in (0, features) and _are(texts, str), name)
    rounds = _check_booster(learner["gradient_booster"], features, outputs)
    attributes = learner["attributes"]
    _require(_are(attributes.values(), str), "attributes")
    if "best_iteration" in attributes:
        _whole(attributes["best_iteration"], 0, max(rounds - 1, 0))


def _check_booster(booster: dict[str, Any], features: int, outputs: int) -> int:
    """Check a booster; returns its number of rounds."""
    kind = booster["name"]
    if kind == "gblinear":
        weights = booster["model"]["weights"]
        _require(_is_array(weights, "d", (features + 1) * outputs), "weights")
        return _whole(booster["model"]["boosted_rounds"], 0, 2**31 - 1)
    if kind == "dart":
        model = booster["gbtree"]["model"]
        weights = booster["weight_drop"]
        _require(len(weights) == len(model["trees"]), "weight_drop")
        _require(_are(list(weights), float), "weight_drop")
    elif kind == "gbtree":
        model = booster["model"]
    else:
        _refuse(f"boosters of the kind {kind} are not known")
    return _check_trees(model, features, outputs)


def _check_trees(model: dict[str, Any], features: int, outputs: int) -> int:
    trees, param = model["trees"], model["gbtree_model_param"]
    _whole(param["num_trees"], len(trees), len(trees))
    _whole(param["num_parallel_tree"], 1, max(len(trees), 1_000_000))
    info = _whole_list(model["tree_info"])
    _require(len(info) == len(trees) and all(0 <= one < outputs for one in info), "tree_info")
    ends = _whole_list(model["iteration_indptr"])
    _require(ends == sorted(ends) and (ends[0], ends[-1]) == (0, len(trees)), "iteration_indptr")
    for number, tree in enumerate(trees):
        _require(tree["id"] == number, "id")
        _check_tree(tree, features)
    if "cats" in model:
        _check_categories(model["cats"], features)
    return len(ends) - 1


def _check_tree(tree: dict[str, Any], features: int) -> None:
    import numpy as np

    param = tree["tree_param"]
    nodes = _whole(param["num_nodes"], 1, 2**31 - 1)
    if int(param["size_leaf_vector"]) > 1:
        _refuse("its trees have several outputs each (multi_strategy), which is not stored")
    for name, kind in _OF_NODES.items():
        _require(_is_array(tree[name], kind, nodes), name)
    left, right = tree["left_children"], tree["right_children"]
    inner = np.flatnonzero(left != -1)
    _require(bool((right[left == -1] == -1).all()), "right_children")
    below = np.concatenate([left[inner], right[inner]])
    _require(bool(((below > 0) & (below < nodes)).all()), "left_children")
    # each node has one node above it, and the root none: there are no circles below the root
    _require(len(np.unique(below)) == len(below), "left_children")
    above = tree["parents"]
    _require(int(above[0]) in _NO_PARENT, "parents")
    _require(bool(((above[1:] >= 0) & (above[1:] < nodes)).all()), "parents")
    _require(bool((above[below] == np.tile(inner, 2)).all()), "parents")
    by = tree["split_indices"][inner]
    _require(bool(((by >= 0) & (by < features)).all()), "split_indices")
    _whole(param["num_feature"], features, features)
    _require(bool((tree["split_type"] <= 1).all()), "split_type")

    for name, kind in _OF_CATEGORIES.items():
        _require(_is_array(tree[name], kind), name)
    at, sizes = tree["categories_nodes"], tree["categories_sizes"]
    starts, values = tree["categories_segments"], tree["categories"]
    _require(np.array_equal(at, np.flatnonzero(tree["split_type"])), "categories_nodes")
    _require(len(at) == len(sizes) == len(starts), "categories_nodes")
    _require(bool(((sizes > 0) & (sizes <= len(values))).all()), "categories_sizes")
    _require(bool(((starts >= 0) & (starts <= len(values) - sizes)).all()), "categories_segments")
    _require(bool(((values >= 0) & (values < _MOST_CATEGORIES)).all()), "categories")


def _check_categories(found: dict[str, Any], features: int) -> None:
    """The names of categories, by which XGBoost finds the codes of a frame's columns again."""
    import numpy as np

    encoded, order, ends = found["enc"], found["sorted_idx"], found["feature_segments"]
    _require(_is_array(order, "l") and _is_array(ends, "l"), "cats")
    _require(len(encoded) in (0, features), "cats")
    _require(len(ends) == (len(encoded) + 1 if encoded else 0), "cats")
    end = 0
    for i, column in enumerate(encoded):
        size = len(column["values"])
        if "offsets" in column:  # names, one after the other
            stops = column["offsets"]
            _require(_is_array(stops, "l") and _is_array(column["values"], "i"), "cats")
            rises = len(stops) == 0 or (stops[0] == 0 and bool((np.diff(stops) >= 0).all()))
            _require(rises and (len(stops) == 0 or stops[-1] == size), "cats")
            size = max(len(stops) - 1, 0)
        else:
            _require(isinstance(column["values"], np.ndarray), "cats")
        _require((ends[i], ends[i + 1]) == (end, end + size), "cats")
        _require(sorted(order[end : end + size].tolist()) == list(range(size)), "cats")
        end += size
    _require(len(order) == end, "cats")


def _is_array(value: Any, kind: str, size: int | None = None) -> bool:
    import numpy as np

    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.dtype(_ARRAY_TYPES[kind])
        and size in (None, len(value))
    )


def _are(values: Iterable[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def _whole(value: Any, low: int, high: int) -> int:
    """Read a whole number, which XGBoost writes as text in parameters."""
    number = int(value)
    if not low <= number <= high:
        _refuse(f"{number} is not from {low} to {high}")
    return number


def _whole_list(values: Any) -> list[int]:
    return [int(value) for value in values]


def _require(is_so: bool, name: str) -> None:
    if not is_so:
        _refuse(f"its {name} cannot be followed")


def _refuse(why: str) -> NoReturn:
    raise StoreError(f"holds an XGBoost model that cannot be loaded: {why}")
