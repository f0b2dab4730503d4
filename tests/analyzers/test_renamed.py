"""Test ``analyzers._renamed``."""

from types import ModuleType

import pytest

import analyzers
from analyzers import plots
from analyzers._renamed import renamed


def new(x: int, *, y: int = 1) -> int:
    return x + y


def test_an_old_name_works_and_warns_of_the_new_one():
    old = renamed(new, "package.old")
    message = r"package\.old is deprecated; use package\.new\."
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert old(2, y=3) == 5
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("module", "old", "current"),
    [
        (analyzers, "scales", "compare_branches"),
        (analyzers, "step_bound", "step_contraction"),
        (plots, "edge", "edge_of_stability"),
        (plots, "linear_overview", "linear_modes"),
        (plots, "overview", "path_geometry"),
        (plots, "scale_figure", "compare_branches"),
        (plots, "zigzag_overview", "zigzag"),
    ],
)
def test_old_names_warn_of_listed_ones(module: ModuleType, old: str, current: str):
    assert old not in module.__all__
    assert current in module.__all__
    message = f"{module.__name__}.{old} is deprecated; use {module.__name__}.{current}."
    with (
        pytest.warns(DeprecationWarning, match=message.replace(".", r"\.")),
        pytest.raises(TypeError, match=r"missing .* required positional argument"),
    ):
        getattr(module, old)()
